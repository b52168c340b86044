# SPDX-License-Identifier: Apache-2.0
"""The tables at the end of ``longflow demo``. Every number in them came from the server."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.table import Table

from sglang_longflow.demo.phase import Phase

SAMPLE_CHARACTERS = 200


def request_table(phase: Phase) -> Table:
    """One row per request of the phase with a budget."""
    table = Table(box=box.SIMPLE)
    for name in ("request", "prompt", "generated", "length", "budget", "KV slots", "saved"):
        table.add_column(name, justify="right")
    for number, answer in enumerate(phase.answers, 1):
        meta = answer.meta
        slots = meta["kv_resident_tokens"]
        # As the server counts: what is resident, cut and overwritten is all K/V of the request.
        stored = slots + meta["kv_overwritten_tokens"] + meta["kv_cut_tokens"]
        table.add_row(
            str(number),
            f"{meta['prompt_tokens']:,}",
            f"{meta['completion_tokens']:,}",
            f"{meta['prompt_tokens'] + meta['completion_tokens']:,}",
            f"{meta['kv_budget']:,}",
            f"{slots:,}",
            f"{1 - slots / stored:.0%}",
        )
    return table


def verdict_table(budgeted: Phase, full: Phase) -> Table:
    """Which problems each phase got right."""
    table = Table(box=box.SIMPLE)
    for name in ("request", "problem", "right answer", budgeted.name, full.name):
        table.add_column(name, justify="right")
    for number, (ours, theirs) in enumerate(zip(budgeted.answers, full.answers, strict=True), 1):
        verdicts = ("right" if answer.is_right else "wrong" for answer in (ours, theirs))
        table.add_row(str(number), ours.question.kind, ours.question.right, *verdicts)
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
    for phase in (budgeted, full):
        table.add_column(phase.name, justify="right")
    for label, text in rows.items():
        table.add_row(label, text(budgeted), text(full))
    return table


def show(budgeted: Phase, full: Phase, *, closing: str, total_s: float) -> None:
    """Print tables, a sample answer and what the numbers do not say."""
    width = max(80, shutil.get_terminal_size().columns)
    console = Console(width=min(width, 100), highlight=False)
    console.print(f"\nRequests with a budget of {budgeted.budget} KV slots", style="bold")
    console.print(request_table(budgeted))
    pool = f"{budgeted.pool_tokens:,} KV slots"
    console.print(f"The same questions in the same pool of {pool}, with and without", style="bold")
    console.print(pool_table(budgeted, full))
    if budgeted.answers[0].question.right is not None:
        console.print("Answers", style="bold")
        console.print(verdict_table(budgeted, full))
    sample = " ".join(budgeted.answers[0].text[:SAMPLE_CHARACTERS].split())
    console.print("Start of answer 1, with the budget:", style="bold")
    console.print(f"  {sample}", markup=False)
    console.print()
    if full.peak_running >= budgeted.peak_running:
        console.print("Full KV ran as many requests at once: a smaller --pool shows a difference.")
    console.print(closing)
    console.print(f"Times depend on what else this machine does. Everything took {total_s:.0f} s.")
