# SPDX-License-Identifier: Apache-2.0
"""A phase of the demo as it goes on: drawn on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import time
from collections import deque
from contextlib import AbstractContextManager

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sglang_longflow.demo.phase import Answer, Phase
from sglang_longflow.server.progress import Bars, shared

LINE_INTERVAL_S = 5.0
CHAINS_LINE_INTERVAL_S = 7.0
RATE_WINDOW_S = 5.0
BAR_CHARACTERS = 28


class QuestionsView(AbstractContextManager["QuestionsView"]):
    """A bar for each request, or a line every 5 s in a log."""

    def __init__(self, requests: int, max_new_tokens: int):
        self._each, self._total = max_new_tokens, requests * max_new_tokens
        parts = [(f"request {i + 1}", max_new_tokens) for i in range(requests)]
        self._bars = Bars(parts, line_every_s=LINE_INTERVAL_S)

    def __call__(self, phase: Phase, running: int, note: str) -> None:
        rest = f"; {note}" if note else ""
        for number, answer in enumerate(phase.answers):
            budget, resident = phase.budget, answer.held_slots
            slots = f"{resident}/{budget} slots" if budget else f"{resident} slots"
            done = answer.generated_tokens
            text = f"{phase.name} {slots:>14}{rest}"
            self._bars.show(number, done, text, f"{done}/{self._each}")
        line = (
            f"{phase.name}: {running} running, {phase.generated_tokens:,} of "
            f"{self._total:,} tokens{rest}"
        )
        self._bars.say(line, now=bool(phase.wall_s))

    def __enter__(self) -> QuestionsView:
        self._bars.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.__exit__(*exc)


class ChainsView(AbstractContextManager["ChainsView"]):
    """The reasoner's chains row by row: slots held beside those that full KV would hold.

    Parameters
    ----------
    console : Console
        Drawn on if it is a terminal that can; otherwise `shared` says lines.
    """

    def __init__(self, console: Console):
        self._console = console
        can_redraw = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, auto_refresh=False) if can_redraw else None
        self._marks = ("█", "░") if console.encoding.startswith("utf") else ("#", "-")
        self._due = 0.0
        self._told: set[int] = set()
        self._seen: deque[tuple[float, int]] = deque()

    def __call__(self, phase: Phase, running: int, note: str) -> None:
        rate = self._rate(phase)
        if self._live is not None:
            self._live.update(self._drawn(phase, rate, note), refresh=True)
            return
        for number, answer in enumerate(phase.answers, 1):
            if answer.is_done and number not in self._told:
                self._told.add(number)
                shared().say(f"{phase.name}: {_end(number, answer)}")
        if not phase.wall_s and time.monotonic() >= self._due:
            self._due = time.monotonic() + CHAINS_LINE_INTERVAL_S
            rows = "  ".join(f"{n}: {_state(a)}" for n, a in enumerate(phase.answers, 1))
            rest = f"; {note}" if note else ""
            shared().say(f"{phase.name}  {rows}  {_memory(phase)}  {rate:.0f} tokens/s{rest}")

    def _rate(self, phase: Phase) -> float:
        """Tokens per second of all requests, over the last seconds; at the end over all."""
        if phase.wall_s:
            return phase.generated_tokens / phase.wall_s
        now = time.monotonic()
        self._seen.append((now, phase.generated_tokens))
        while now - self._seen[0][0] > RATE_WINDOW_S:
            self._seen.popleft()
        since, tokens = self._seen[0]
        return (phase.generated_tokens - tokens) / max(now - since, 1.0)

    def _drawn(self, phase: Phase, rate: float, note: str) -> Group:
        held_mark, full_mark = self._marks
        table = Table(box=box.SIMPLE, pad_edge=False)
        table.add_column("problem")
        table.add_column(f"{held_mark} slots held   {full_mark} with full KV")
        table.add_column("slots", justify="right")
        table.add_column("full KV", justify="right")
        table.add_column("")
        for number, answer in enumerate(phase.answers, 1):
            chain = answer.question.chain_tokens
            longest = max(chain * 1.05, *(one.full_slots for one in phase.answers))
            table.add_row(
                f"{number} {answer.question.kind}",
                self._bar(answer, longest),
                f"{answer.held_slots:,}",
                f"{answer.full_slots:,}",
                _status(answer),
            )
        if phase.wall_s:
            end = f"all answered after {phase.wall_s:.0f} s"
        else:
            end = _memory(phase)
        line = Text(f"{phase.name}: {end}; {rate:.0f} tokens/s")
        return Group(table, line, *([Text(note, style="yellow")] if note else []))

    def _bar(self, answer: Answer, longest: float) -> Text:
        """Two lengths in one bar: the slots held, and those that full KV would hold."""
        held_mark, full_mark = self._marks
        held = round(BAR_CHARACTERS * answer.held_slots / longest)
        full = round(BAR_CHARACTERS * answer.full_slots / longest)
        bar = Text(held_mark * held, style="cyan")
        return bar.append(full_mark * (full - held), style="dim")

    def __enter__(self) -> ChainsView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()


def _memory(phase: Phase) -> str:
    """What the running requests hold, beside what they would hold with full KV."""
    rows = [answer for answer in phase.answers if not answer.is_done]
    held = phase.mib(sum(answer.held_slots for answer in rows))
    text = f"{held:.1f} of {phase.mib(phase.pool_tokens):.1f} MiB"
    if phase.budget:
        text += f" (full KV: {phase.mib(sum(answer.full_slots for answer in rows)):.1f})"
    return text


def _state(answer: Answer) -> str:
    """A row in a log's line: ``1,204 in 400`` is 1,204 tokens of K/V in 400 slots."""
    if answer.is_done:
        return answer.verdict
    return f"{answer.full_slots:,} in {answer.held_slots:,}" if answer.meta else "waits"


def _status(answer: Answer) -> str:
    if answer.is_done:
        return answer.verdict
    return "runs" if answer.meta else "waits"


def _end(number: int, answer: Answer) -> str:
    """What is said when a chain has ended."""
    expected = "" if answer.is_right else f" instead of {answer.question.right}"
    return (
        f"problem {number} ({answer.question.kind}) is {answer.verdict}: {answer.said}{expected}; "
        f"{answer.full_slots:,} tokens in {answer.held_slots:,} slots, after {answer.last_s:.0f} s"
    )
