# SPDX-License-Identifier: Apache-2.0
"""Runs calls against a server under the judge, and writes down what was found."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from fuzz_call import Call
from fuzz_judge import Client, Guilty, Judge, is_ours, tracebacks

KEPT_CALLS = 400
LAST_WORDS_S = 3.0  # a server that dies writes its log


@dataclass
class Finding:
    """What broke, and what had been sent; `open_calls` had no answer yet."""

    kind: str
    detail: str
    calls: list[Call]
    open_calls: list[Call]
    log_tail: str

    @property
    def signature(self) -> str:
        traced = list(tracebacks(self.log_tail))
        return traced[-1] if traced else f"{self.kind}: {self.detail[:120]}"

    def write(self, folder: Path, name: str) -> Path:
        """A replay file (JSONL of calls), with the report beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        replay = folder / f"{name}.jsonl"
        replay.write_text("".join(json.dumps(call.to_json()) + "\n" for call in self.calls))
        (folder / f"{name}.open.jsonl").write_text(
            "".join(json.dumps(call.to_json()) + "\n" for call in self.open_calls)
        )
        (folder / f"{name}.txt").write_text(
            f"{self.kind}: {self.detail}\n{self.signature}\n\n{self.log_tail}\n"
        )
        return replay


@dataclass
class Report:
    """Counts of one run."""

    sent: Counter = field(default_factory=Counter)  # (route, outcome) -> calls
    checkpoints: int = 0
    neighbour_answers: int = 0
    seconds: float = 0.0
    unexplained: Counter = field(default_factory=Counter)  # exceptions in the server's log
    notes: Counter = field(default_factory=Counter)
    #: One call for each kind of answer that names no fault of the caller: 5xx, or cut off.
    samples: dict[tuple[str, str], str] = field(default_factory=dict)
    finding: Finding | None = None

    @property
    def requests(self) -> int:
        return sum(self.sent.values())

    def text(self) -> str:
        classes: Counter = Counter()
        for (_, outcome), number in self.sent.items():
            classes[outcome] += number
        lines = [
            f"{self.requests} requests in {self.seconds:.0f} s, {self.neighbour_answers} of "
            f"neighbours compared, {self.checkpoints} checkpoints",
            "outcomes: " + ", ".join(f"{name} {n}" for name, n in classes.most_common()),
        ]
        lines += [f"note: {name} ({n})" for name, n in self.notes.most_common()]
        lines += [f"in the log {n}x: {name}" for name, n in self.unexplained.most_common()]
        lines += [f"sample: {key} {body}" for key, body in sorted(self.samples.items())]
        if self.finding:
            lines += [f"FOUND {self.finding.kind}: {self.finding.detail}", self.finding.signature]
        return "\n".join(lines)


def route_of(call: Call) -> str:
    return call.path.split("?")[0]


class Run:
    """Calls by several workers, neighbours beside them, a checkpoint now and then."""

    def __init__(self, server: Any, judge: Judge, *, workers: int = 12, check_every: int = 200):
        self.server, self.judge = server, judge
        self.workers, self.check_every = workers, check_every
        self.report = Report()
        self.recent: deque[Call] = deque(maxlen=KEPT_CALLS)
        self.open: dict[int, Call] = {}
        self.numbers = itertools.count()
        self.resuming: set[asyncio.Task] = set()

    async def run(self, calls: Iterable[Call]) -> Report:
        began, calls = time.monotonic(), iter(calls)
        try:
            while (first := next(calls, None)) is not None:
                await self._part(chain([first], islice(calls, self.check_every - 1)))
                await self.judge.checkpoint()
                self.report.checkpoints += 1
        except Guilty as guilty:
            await asyncio.sleep(LAST_WORDS_S)
            self._found(guilty)
        self.report.seconds = time.monotonic() - began
        self.report.neighbour_answers = self.judge.neighbour_answers
        self.report.notes += self.judge.notes
        for name, number in self.judge.neighbour_refusals.items():
            self.report.notes[f"a neighbour: {name}"] += number
        self.report.unexplained += tracebacks(self.server.log.read_text(errors="replace"))
        return self.report

    def _found(self, guilty: Guilty) -> None:
        with contextlib.suppress(Guilty):
            try:
                self.judge.alive()
            except Guilty as died:
                if guilty.kind != "died":
                    guilty = Guilty("died", f"{died.detail} ({guilty})")
        tail = "\n".join(self.server.log.read_text(errors="replace").splitlines()[-250:])
        self.report.finding = Finding(
            guilty.kind, guilty.detail, list(self.recent), list(self.open.values()), tail
        )

    async def _part(self, calls: Iterator[Call]) -> None:
        stop = asyncio.Event()
        beside = [asyncio.create_task(self.judge.keep_asking(n, stop)) for n in (0, 2)]
        sending = {asyncio.create_task(self._worker(calls)) for _ in range(self.workers)}
        try:
            while sending:
                done, _ = await asyncio.wait(
                    [*sending, *beside], return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    task.result()  # what a neighbour found ends the run, too
                sending -= done
            await asyncio.gather(*self.resuming)
            stop.set()
            await asyncio.gather(*beside)
        finally:
            for task in (*beside, *sending):
                task.cancel()
            await asyncio.gather(*beside, *sending, return_exceptions=True)

    async def _worker(self, calls: Iterator[Call]) -> None:
        for call in calls:
            await self._send(call)

    async def _send(self, call: Call) -> None:
        self.recent.append(call)
        key = next(self.numbers)  # one call may be sent twice at once
        self.open[key] = call
        self.judge.saw(call)
        outcome = await self.judge.client.send(call)
        self.judge.saw(call)
        self.report.sent[route_of(call), outcome.status] += 1
        if call.resume_s is not None:
            task = asyncio.create_task(self._resume(call.resume_s))
            self.resuming.add(task)
            task.add_done_callback(self.resuming.discard)
        if outcome.status in ("500", "cut off"):
            said = re.sub(r"[0-9a-f]{8,}|\d+", "…", outcome.text)[:90]
            self.report.samples.setdefault((route_of(call), said), _short(call))
        if outcome.status == "timed out":
            raise Guilty("hang", f"no answer: {call.method} {call.path} {_short(call)}")
        if outcome.status in ("dropped", "cut off"):
            await asyncio.sleep(0.5)
            self.judge.alive()
            self.report.notes[f"{outcome.status}: {route_of(call)} {outcome.text[:80]}"] += 1
        del self.open[key]

    async def _resume(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await self.judge.client.ask("POST", "/continue_generation", {})


def _short(call: Call) -> str:
    return (call.payload() or b"")[:300].decode(errors="replace")


def ours(report: Report) -> list[str]:
    """Exceptions of this package that the server lived through."""
    return [name for name in report.unexplained if is_ours(name)]


async def fuzz(server: Any, variant: Any, calls: Iterable[Call], **options: Any) -> Report:
    """Run `calls` against a server that is ready."""
    import harness

    async with Client(server.url) as client:
        judge = Judge(client, server.process, variant.budget_tokens, variant.pool_tokens)
        judge.exact_tokens = harness.DEVICE != "cuda"
        await judge.meet()
        return await Run(server, judge, **options).run(calls)
