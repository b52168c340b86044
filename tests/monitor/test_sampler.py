# SPDX-License-Identifier: Apache-2.0
"""The sampler goes on, whatever fails, and says so once."""

import asyncio
import contextlib
import logging

import pytest

import virtual_time
from sglang_longflow.monitor import sampler as module
from sglang_longflow.monitor import snapshots
from sglang_longflow.monitor.history import Local
from sglang_longflow.monitor.sampler import Sampler, WhileServing
from sglang_longflow.monitor.snapshots import SchedulerSilent, Snapshots


@pytest.fixture
def play(monkeypatch):
    """``play(run)``: `run()` to its end, by a clock that no busy machine moves."""
    return lambda run: virtual_time.run(monkeypatch, run, module, snapshots)


def stats(uptime_s: float) -> dict:
    return {
        "pool": {"total_tokens": 100, "available_tokens": 60, "evictable_tokens": 10},
        "tree_held_tokens": 5,
        "requests": [{"kv_budget": 8, "own_tokens": 20}, {"kv_budget": 0, "own_tokens": 3}],
        "prefilling": [],
        "counters": {"decoded_tokens": int(10 * uptime_s), "overwritten_tokens": 0},
        "sums": {"running_requests": 2, "at_budget_requests": 1},
        "queued_requests": 4,
        "uptime_s": uptime_s,
    }


class Server:
    """Answers with its `uptime_s`, or raises `error`, or takes `delay_s`."""

    def __init__(self):
        self.uptime_s = 0.0
        self.error: Exception | None = None
        self.local_error: Exception | None = None
        self.delay_s = 0.0
        self.questions = 0

    async def ask(self) -> dict:
        self.questions += 1
        self.uptime_s += 5
        await asyncio.sleep(self.delay_s)
        if self.error:
            raise self.error
        return stats(self.uptime_s)

    def local(self) -> Local:
        if self.local_error:
            raise self.local_error
        return Local(refused_requests=7)


class Clock:
    """Readings of a sampler, an interval apart."""

    def __init__(self, server: Server):
        snapshots = Snapshots(server.ask, min_interval_s=0, patience_s=0.05)
        self.sampler = Sampler(lambda _: snapshots.get(0), server.local)
        self.at_s = 1_800_000_000.0

    async def sample(self) -> dict:
        """The columns of the last four intervals."""
        self.at_s += 5
        await self.sampler.sample(self.at_s)
        return self.sampler.history.table(self.at_s, 20, 5)["columns"]


def test_readings_become_columns(play):
    async def run():
        clock = Clock(Server())
        await clock.sample()
        columns = await clock.sample()
        assert columns["decoded_tokens_per_s"][-2:] == [None, 10.0]
        last = {name: column[-1] for name, column in columns.items()}
        assert (last["running_requests"], last["queued_requests"]) == (2, 4)
        slots = ("budgeted", "full_kv", "prefill", "tree_held", "evictable", "free")
        assert [last[f"{name}_tokens"] for name in slots] == [20, 3, 0, 5, 10, 60]
        assert columns["refused_requests"][-2:] == [7, 0]

    play(run)


def test_errors_are_logged_once_and_sampling_goes_on(caplog, play):
    async def run():
        server = Server()
        clock = Clock(server)
        await clock.sample()
        server.error, server.local_error = ValueError("broken"), OSError("disk full")
        await clock.sample()
        await clock.sample()
        server.error = server.local_error = None
        columns = await clock.sample()
        assert columns["running_requests"] == [2, None, None, 2]
        assert columns["refused_requests"][-1] == 0  # counted before
        server.error = SchedulerSilent("it has ended")
        assert (await clock.sample())["running_requests"][-1] is None

    with caplog.at_level(logging.ERROR):
        play(run)
    assert [str(record.exc_info[1]) for record in caplog.records] == ["disk full", "broken"]


def test_a_busy_scheduler_is_a_gap_and_is_not_asked_again(play):
    async def run():
        server = Server()
        clock = Clock(server)
        await clock.sample()
        server.delay_s = 0.5
        for _ in range(3):
            columns = await clock.sample()
        assert columns["running_requests"] == [2, None, None, None]
        assert server.questions == 2

    play(run)


def test_it_runs_while_the_app_does(monkeypatch, play):
    """At whole intervals, past an error that nothing else has caught, until the shutdown."""
    monkeypatch.setattr(module, "INTERVAL_S", 0.02)
    at: list[float] = []

    def watched() -> Sampler:
        server = Server()
        sampler = Sampler(Snapshots(server.ask, min_interval_s=0).get, server.local)
        original = sampler.history.record

        def record(at_s, reading, local):
            at.append(at_s)
            if len(at) == 2:
                raise RuntimeError("a bug")
            original(at_s, reading, local)

        sampler.history.record = record
        return sampler

    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def run():
        told, before = [], asyncio.all_tasks()
        inbox: asyncio.Queue = asyncio.Queue()

        async def send(message):
            told.append(message["type"])

        served = asyncio.create_task(
            WhileServing(app, watched().run)({"type": "lifespan"}, inbox.get, send)
        )
        await asyncio.sleep(0.05)
        assert at == []  # not before the app has started
        inbox.put_nowait({"type": "lifespan.startup"})
        async with asyncio.timeout(20):
            while len(at) < 5:
                await asyncio.sleep(0.01)
        inbox.put_nowait({"type": "lifespan.shutdown"})
        await served
        count = len(at)
        await asyncio.sleep(0.06)
        assert len(at) == count and asyncio.all_tasks() == before
        assert told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]

    play(run)
    assert at == sorted(at)


def test_a_sleep_that_ends_early_leaves_no_gap(monkeypatch, play):
    """Every interval has its reading, although the clock is a moment behind at each."""
    readings: list[float] = []

    async def run():
        sampler = Sampler(Snapshots(Server().ask, min_interval_s=0).get, Local)
        clock = 1_800_000_000.0
        sampler.now = lambda: clock

        async def sleep(seconds):
            nonlocal clock
            clock += seconds - 0.001

        async def sample(at_s):
            nonlocal clock
            readings.append(at_s)
            clock += 0.002  # past the boundary
            if len(readings) == 5:
                raise asyncio.CancelledError

        sampler.sample = sample
        monkeypatch.setattr(module.asyncio, "sleep", sleep)
        await sampler.run()

    with contextlib.suppress(asyncio.CancelledError):
        play(run)
    assert [at_s - 1_800_000_000 for at_s in readings] == [5, 10, 15, 20, 25]
