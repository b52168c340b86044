# SPDX-License-Identifier: Apache-2.0
"""A soak: two workers behind the router, mixed traffic, one scheduler killed and restarted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from fleet import STRICT, Replica, Router, until
from soak_traffic import Note, Traffic

#: Against a wait for ever.
LIMIT_S = 900

POOL_TOKENS = 2500
ARGUMENTS = [
    *("--kv-budget=96", "--kv-budget-allow-full", "--kv-budget-max=400", "--random-seed=1"),
    *(f"--max-total-tokens={POOL_TOKENS}", "--chunked-prefill-size=128", "--device=cpu"),
    *("--sleep-on-idle", "--served-model-name=soak"),
    # Who had which request: the ids alone, no text.
    *("--log-requests", "--log-requests-level=0", "--log-requests-format=json"),
]
#: The part of a run that is not looked at for memory: caches fill.
WARM_UP = 1 / 3
#: The rate of growth is judged over no less: a shorter while does not tell a cache from a leak.
RATE_MINUTES = 12.0


@dataclass
class Memory:
    """Resident bytes of one process over time."""

    times_s: list[float] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)

    def after_warm_up(self) -> tuple[float, float, float, float]:
        """(minutes, MB at the start, growth in MB, MB a minute), by medians of fifths."""
        first = int(len(self.rss) * WARM_UP)
        times, rss = self.times_s[first:], self.rss[first:]
        fifth = max(1, len(rss) // 5)
        start, end = statistics.median(rss[:fifth]), statistics.median(rss[-fifth:])
        minutes = (statistics.median(times[-fifth:]) - statistics.median(times[:fifth])) / 60
        growth = (end - start) / 1e6
        return minutes, start / 1e6, growth, growth / minutes if minutes else 0.0


@dataclass
class Report:
    """What a soak found; `problems` is empty if it passed."""

    minutes: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)
    lost_with_worker: int = 0
    exit_after_s: float = 0.0
    exit_status: int | None = None
    ready_after_s: float = 0.0
    pools: dict[str, dict] = field(default_factory=dict)
    overwritten_tokens: int = 0
    memory: dict[str, dict[str, float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass
class Soak:
    """One run: traffic, the kill when a third of `minutes` is over, and traffic to the end.

    The time to restart comes on top where it takes longer than a third, and on a slow machine what
    it takes until the outcomes (`Traffic.outcomes`) are `enough`.
    """

    folder: Path
    model: Path
    tools: Path
    minutes: float
    clients: int = 6
    pause_s: float = 0.3
    growth_mb: float = 80.0
    growth_mb_a_minute: float = 0.0
    seed: int = 1
    enough: Callable[[Counter], bool] = lambda outcomes: True
    report: Report = field(default_factory=Report)

    def __post_init__(self):
        names = ("worker-0", "worker-1")
        self.workers = [Replica(n, self.folder, self.model, ARGUMENTS) for n in names]
        # This one passes custom_params on; sglang-router 0.3.2 drops them (test_router.py).
        self.router = Router(self.folder, self.tools, "smg", "--health-check-interval-secs", "5")
        self.memory: dict[tuple[str, int], Memory] = defaultdict(Memory)
        self._down: set[str] = set()

    def serving(self) -> list[str]:
        return [w.url for w in self.workers if w.name not in self._down]

    async def run(self) -> Report:
        try:
            with _strict():
                await self._start()
                traffic = Traffic(
                    self.router.url, self.serving, self.clients, self.seed, self.pause_s
                )
                watch = asyncio.create_task(self._watch_memory())
                began = time.monotonic()
                traffic.start()
                third = self.minutes * 20
                await asyncio.sleep(third)
                killed = await self._kill_and_restart(self.workers[0])
                await asyncio.sleep(max(third, 3 * third - (time.monotonic() - began)))
                enough = lambda: self.enough(traffic.outcomes())  # noqa: E731
                await until(enough, LIMIT_S, "enough outcomes")
                await traffic.stop(LIMIT_S)
                self.report.minutes = round((time.monotonic() - began) / 60, 2)
                watch.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watch
                await self._judge(traffic, killed)
        finally:
            for program in (*self.workers, self.router):
                program.kill()
        return self.report

    async def _start(self) -> None:
        for worker in self.workers:
            worker.start()
        await self.router.start()
        for worker in self.workers:
            await until(lambda w=worker: w.is_ready, LIMIT_S, f"{worker.name} is ready", 0.5)
            worker.give_way()
            await self.router.add(worker.url)

    async def _watch_memory(self) -> None:
        while True:
            for worker in self.workers:
                with contextlib.suppress(psutil.Error, AttributeError):
                    for part, process in (await asyncio.to_thread(worker.parts)).items():
                        found = self.memory[f"{worker.name} {part}", process.pid]
                        found.rss.append(process.memory_info().rss)
                        found.times_s.append(time.monotonic())
            await asyncio.sleep(1)

    async def _kill_and_restart(self, worker: Replica) -> tuple[float, float, float]:
        """(when the scheduler was killed, when its server had ended, when it served again), as
        Kubernetes would."""
        scheduler = worker.parts()["scheduler"]
        self._down.add(worker.name)
        killed, began = time.time(), time.monotonic()
        os.kill(scheduler.pid, signal.SIGKILL)
        await until(lambda: not worker.alive, LIMIT_S, f"{worker.name} ends after its scheduler")
        ended = time.time()
        self.report.exit_after_s = round(time.monotonic() - began, 1)
        self.report.exit_status = worker.process.returncode
        worker.start()
        await until(lambda: worker.is_ready, LIMIT_S, f"{worker.name} is ready again", 0.5)
        worker.give_way()
        healthy = lambda: self.router.workers()[worker.url]["is_healthy"]  # noqa: E731
        await until(healthy, LIMIT_S, f"the router takes {worker.name} again", 0.5)
        self._down.discard(worker.name)
        self.report.ready_after_s = round(time.monotonic() - began, 1)
        return killed, ended, time.time()

    async def _judge(self, traffic: Traffic, killed: tuple[float, float, float]) -> None:
        report, problems = self.report, self.report.problems
        report.outcomes = {
            f"{kind}: {outcome}": count
            for (kind, outcome), count in sorted(traffic.outcomes().items())
        }
        for note in traffic.failed():
            if self._went_down(note, *killed):
                report.lost_with_worker += 1
            else:
                problems.append(f"{note.kind} {note.rid}: {note.detail or note.outcome}")
        if report.exit_status != 1:
            problems.append(f"longflow serve ended with {report.exit_status} instead of 1")
        for worker in self.workers:
            await self._judge_pool(worker)
            status = await self._answers(worker)
            if status:
                problems.append(f"{worker.name} does not answer at the end: {status}")
        self._judge_memory()

    def _went_down(self, note: Note, killed: float, ended: float, back: float) -> bool:
        """Whether the killed worker alone had this request: when its scheduler was killed, or
        after, since the server takes requests until it has seen that and ended."""
        if note.sent_to:
            had = [note.sent_to == worker.url for worker in self.workers]
        else:
            had = [note.rid in _received(worker.log) for worker in self.workers]
        return had == [True, False] and note.at <= ended and killed <= note.done <= back

    async def _judge_pool(self, worker: Replica) -> None:
        """Nothing runs or waits any more, and every slot is free or evictable."""

        def quiet():
            stats = worker.stats()
            return not stats["requests"] and not stats["queued_requests"] and stats

        stats = await until(quiet, LIMIT_S, f"{worker.name} is quiet", 0.5)
        pool, counters = stats["pool"], stats["counters"]
        self.report.pools[worker.name] = pool
        self.report.overwritten_tokens += counters["overwritten_tokens"]
        missing = pool["total_tokens"] - pool["available_tokens"] - pool["evictable_tokens"]
        if missing or pool["total_tokens"] != POOL_TOKENS:
            self.report.problems.append(f"{worker.name}: {missing} slots leaked: {pool}")

    async def _answers(self, worker: Replica) -> str:
        import aiohttp

        from soak_requests import Request, problem

        params = {"max_new_tokens": 150, "temperature": 0, "ignore_eos": True}
        request = Request("/generate", {"text": "river", "sampling_params": params}, 150)
        async with (
            aiohttp.ClientSession() as session,
            session.post(worker.url + request.path, json=request.body) as response,
        ):
            return problem(request, response.status, await response.text())

    def _judge_memory(self) -> None:
        for (name, pid), memory in self.memory.items():
            if len(memory.rss) < 30:
                continue  # a process that was killed early
            minutes, start, growth, rate = memory.after_warm_up()
            numbers = {"minutes": minutes, "start_mb": start, "growth_mb": growth}
            numbers = {key: round(value, 2) for key, value in numbers.items()}
            self.report.memory[f"{name} {pid}"] = numbers
            if growth > self.growth_mb:
                self.report.problems.append(f"{name}: grew by {growth:.0f} MB: {numbers}")
            judged = self.growth_mb_a_minute and minutes >= RATE_MINUTES
            if judged and rate > self.growth_mb_a_minute:
                self.report.problems.append(f"{name}: grows {rate:.2f} MB a minute: {numbers}")


@contextlib.contextmanager
def _strict():
    """SGLang's memory checks on, in the servers started in the block."""
    from harness import environment

    with environment(**STRICT):
        yield


def _received(log: Path) -> set[str]:
    """Ids of the requests that a worker logged as received."""
    return set(re.findall(r'"request\.received".*?"rid": "(soak-\d+)"', log.read_text()))


def as_text(report: Report) -> str:
    return json.dumps(vars(report), indent=2)
