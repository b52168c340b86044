# SPDX-License-Identifier: Apache-2.0
"""The tables at the end of ``longflow demo``. Every number in them came from the server."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from sglang_longflow.demo.phase import Phase
from sglang_longflow.demo.scenes import Scene

SAMPLE_CHARACTERS = 200
NEXT = """\
  longflow demo --seed 7         other problems
  longflow demo --budget 200     too few slots: the answers go wrong
  longflow demo --stay           the server stays at the end: ask it, watch it
  longflow demo --questions      eight questions to SmolLM2-135M (in a checkout:
                                 make demo-questions)
  longflow serve Qwen/Qwen3-1.7B --kv-budget 3200        the same on your GPU"""


def next_heading() -> str:
    """What stands above `NEXT`: also how to have `longflow` in PATH, where it is not."""
    activate = Path(sys.executable).with_name("activate")
    if shutil.which("longflow") or not activate.exists():
        return "Next:"
    inside = activate.is_relative_to(Path.cwd())
    return f"Next, after `. {activate.relative_to(Path.cwd()) if inside else activate}`:"


def machine_load() -> str:
    """How busy the machine was, which the times of both parts depend on."""
    busy = os.getloadavg()[1]
    return f"times depend on what else ran: load average {busy:.1f} on {os.cpu_count()} cores"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE)
    for name in columns:
        table.add_column(name, justify="left" if name == "problem" else "right")
    return table


def request_table(phase: Phase) -> Table:
    """One row per request of the phase with a budget."""
    table = _table("request", "prompt", "generated", "length", "budget", "KV slots", "saved")
    for number, answer in enumerate(phase.answers, 1):
        meta = answer.meta
        table.add_row(
            str(number),
            f"{meta['prompt_tokens']:,}",
            f"{meta['completion_tokens']:,}",
            f"{meta['prompt_tokens'] + meta['completion_tokens']:,}",
            f"{meta['kv_budget']:,}",
            f"{answer.held_slots:,}",
            f"{1 - answer.held_slots / answer.full_slots:.0%}",
        )
    return table


def chain_table(phase: Phase) -> Table:
    """What each chain of the phase with a budget held, and what full KV would have held."""
    table = _table("problem", "prompt", "chain", "KV slots", "MiB", "full KV", "MiB", "saved")
    for number, answer in enumerate(phase.answers, 1):
        table.add_row(
            f"{number} {answer.question.kind}",
            f"{answer.meta['prompt_tokens']:,}",
            f"{answer.generated_tokens:,}",
            f"{answer.held_slots:,}",
            f"{phase.mib(answer.held_slots):.1f}",
            f"{answer.full_slots:,}",
            f"{phase.mib(answer.full_slots):.1f}",
            f"{1 - answer.held_slots / answer.full_slots:.0%}",
        )
    return table


def answer_table(budgeted: Phase, full: Phase) -> Table:
    """The right answer of each problem, and what each phase answered."""

    # 80 columns hold two answers of a search and both verdicts if little is left free between them.
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for name in ("problem", "right answer", f"answer, {budgeted.name}", "", full.name):
        table.add_column(name)
    for number, (ours, theirs) in enumerate(zip(budgeted.answers, full.answers, strict=True), 1):
        problem = f"{number} {ours.question.kind}"
        table.add_row(problem, ours.question.right, ours.said, ours.verdict, theirs.verdict)
    return table


def pool_table(budgeted: Phase, full: Phase) -> Table:
    """Both phases side by side."""
    table = Table(box=box.SIMPLE)
    table.add_column("")
    rows: dict[str, Callable[[Phase], str]] = {
        "peak running requests": lambda p: f"{p.peak_running} of {len(p.answers)}",
        "peak KV slots in use": lambda p: f"{p.peak_slots:,}",
        "generated tokens": lambda p: f"{p.generated_tokens:,}",
        "wall time": lambda p: f"{p.wall_s:.1f} s",
        "output tokens/s": lambda p: f"{p.generated_tokens / p.wall_s:.1f}",
    }
    if budgeted.answers[0].question.right is not None:
        longest = max(answer.full_slots for answer in full.answers)

        def room(phase: Phase) -> str:
            return f"{phase.pool_tokens // (phase.budget or longest):,}"

        def waited(phase: Phase) -> str:
            waits = [answer.first_s or 0.0 for answer in phase.answers]
            return f"{sum(waits) / len(waits):.1f} s"

        rows = {
            "requests that the pool has room for": room,
            **rows,
            "mean wait for the first tokens": waited,
            "right answers": lambda p: f"{p.right_answers} of {len(p.answers)}",
        }
    if budgeted.retractions or full.retractions:
        rows["retractions"] = lambda p: str(p.retractions)
    for phase in (budgeted, full):
        table.add_column(phase.name, justify="right")
    for label, text in rows.items():
        table.add_row(label, text(budgeted), text(full))
    return table


def show(console: Console, budgeted: Phase, full: Phase, scene: Scene, seed: int | None) -> None:
    """Print tables, a sample answer and what the numbers do not say.

    `seed` is that of the reasoner's problems; None for questions.
    """
    solves = seed is not None
    console.print(f"\nRequests with a budget of {budgeted.budget} KV slots", style="bold")
    console.print(chain_table(budgeted) if solves else request_table(budgeted))
    what = "problems" if solves else "questions"
    pool = f"{budgeted.pool_tokens:,} KV slots"
    console.print(f"The same {what} in the same pool of {pool}, with and without", style="bold")
    console.print(pool_table(budgeted, full))
    if solves:
        console.print("Answers", style="bold")
        console.print(answer_table(budgeted, full))
        console.print()
    sample = " ".join(budgeted.answers[0].text[:SAMPLE_CHARACTERS].split())
    console.print("Start of answer 1, with the budget:", style="bold")
    console.print(f"  {sample}", markup=False)
    console.print()
    if full.peak_running >= budgeted.peak_running:
        console.print("Full KV ran as many requests at once: a smaller --pool shows a difference.")
    if solves:
        console.print(f"Problems shown: the first {len(budgeted.answers)} of seed {seed}.")
    console.print(scene.closing)
    if solves:
        console.print(f"\n{next_heading()}\n{NEXT}", soft_wrap=True)
