"""Many viewers, one question; nobody gets an answer that is older than asked for."""

import asyncio
import json
import time

import pytest

from sglang_longflow.console.snapshots import SchedulerSilent, Snapshots, merge


class Scheduler:
    """Answers after `delay_s` with the number of the question and when it was asked."""

    def __init__(self, delay_s: float = 0.0):
        self.delay_s = delay_s
        self.asked: list[float] = []
        self.at_once = 0

    async def __call__(self) -> dict:
        self.asked.append(time.monotonic())
        self.at_once += 1
        assert self.at_once == 1, "two questions at once"
        await asyncio.sleep(self.delay_s)
        self.at_once -= 1
        return {"question": len(self.asked)}


def test_viewers_share_one_question():
    async def run():
        scheduler = Scheduler(0.05)
        snapshots = Snapshots(scheduler, min_interval_s=0)
        found = await asyncio.gather(*(snapshots.get(1.0) for _ in range(20)))
        assert {one.stats["question"] for one in found} == {1}
        assert (await snapshots.get(1.0)).stats == {"question": 1}
        assert json.loads(found[0].body) == {"question": 1}
        await asyncio.sleep(0.06)
        assert (await snapshots.get(0.05)).stats == {"question": 2}

    asyncio.run(run())


def test_an_answer_is_never_older_than_asked_for():
    """With age 0 the question is sent after the call, also while another one is under way."""

    async def run():
        scheduler = Scheduler(0.03)
        snapshots = Snapshots(scheduler, min_interval_s=0)
        early = asyncio.create_task(snapshots.get(0))
        await asyncio.sleep(0.01)
        called_at = time.monotonic()
        late = await snapshots.get(0)
        assert late.asked_at >= called_at
        assert (await early).stats["question"] == 1 and late.stats["question"] == 2

    asyncio.run(run())


def test_questions_keep_their_distance():
    async def run():
        scheduler = Scheduler()
        snapshots = Snapshots(scheduler, min_interval_s=0.05)
        for _ in range(4):
            await snapshots.get(0)
        gaps = [b - a for a, b in zip(scheduler.asked, scheduler.asked[1:])]
        assert len(gaps) == 3 and min(gaps) >= 0.049

    asyncio.run(run())


def test_a_silent_scheduler_is_named_and_asked_only_once():
    async def run():
        scheduler = Scheduler(0.2)
        snapshots = Snapshots(scheduler, min_interval_s=0, timeout_s=0.05)
        for _ in range(3):
            with pytest.raises(SchedulerSilent, match="has not answered"):
                await snapshots.get()
        assert len(scheduler.asked) == 1  # the first question is still under way
        await asyncio.sleep(0.15)
        assert (await snapshots.get()).stats == {"question": 1}

    asyncio.run(run())


def test_a_viewer_that_goes_away_takes_no_answer_along():
    async def run():
        snapshots = Snapshots(Scheduler(0.05), min_interval_s=0)
        leaving = asyncio.create_task(snapshots.get())
        staying = asyncio.create_task(snapshots.get())
        await asyncio.sleep(0.01)
        leaving.cancel()
        assert (await staying).stats == {"question": 1}

    asyncio.run(run())


def test_a_failed_question_is_told_and_the_next_one_asked():
    async def run():
        answers = iter([SchedulerSilent("no budget"), {"fine": 1}])

        async def ask():
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        snapshots = Snapshots(ask, min_interval_s=0)
        with pytest.raises(SchedulerSilent, match="no budget"):
            await snapshots.get()
        assert (await snapshots.get()).stats == {"fine": 1}

    asyncio.run(run())


def state(rid: str, seq_len: int, kv_len: int, kv_budget: int) -> dict:
    row = [rid, seq_len, kv_len, kv_budget, "longflow", kv_len, 0]  # RowStats, as it is sent
    return {
        "settings": {"kv_budget": 64},
        "pool": {"total_tokens": 1000, "available_tokens": 400},
        "tree_held_tokens": 7,
        "requests": [row],
        "prefilling": [],
        "counters": {"overwritten_tokens": 3},
        "queued_requests": 2,
        "queue": [{"rid": "w" + rid}],
        "paused": rid == "b",
        "stalled_s": 12.5 if rid == "a" else 0.0,
        "uptime_s": seq_len / 10,
    }


def test_merge_sums_what_adds_up():
    states = [state("a", 500, 64, 64), state("b", 90, 90, 0)]
    before = json.dumps(states)
    merged = merge(states, {"model": "m"})
    assert json.dumps(states) == before
    assert merged["server"] == {"model": "m", "schedulers": 2}
    assert merged["pool"] == {
        "total_tokens": 2000,
        "available_tokens": 800,
        "budgeted_tokens": 64,
    }
    assert merged["counters"] == {"overwritten_tokens": 6}
    assert merged["queued_requests"] == 4 and merged["tree_held_tokens"] == 14
    assert [row["rid"] for row in merged["requests"]] == ["a", "b"]
    assert merged["requests"][0]["own_tokens"] == 64
    assert [row["rid"] for row in merged["queue"]] == ["wa", "wb"]
    assert merged["uptime_s"] == 9.0
    assert merged["paused"] is True and merged["stalled_s"] == 12.5
    assert merged["sums"] == {
        "running_requests": 2,
        "at_budget_requests": 1,
        "full_kv_requests": 1,
        "saved_tokens": 436,
    }
