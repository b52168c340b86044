# SPDX-License-Identifier: Apache-2.0
"""Many viewers, one question; nobody gets an answer that is older than asked for."""

import asyncio
import json
import sys
import time

import pytest

import virtual_time
from sglang_longflow.monitor import snapshots as module
from sglang_longflow.monitor.snapshots import (
    MOST_ID_CHARACTERS,
    SchedulerSilent,
    Snapshots,
    merge,
    not_known,
)


@pytest.fixture
def play(monkeypatch):
    """``play(run)``: `run()` to its end, by a clock that no busy machine moves."""
    return lambda run: virtual_time.run(monkeypatch, run, module, sys.modules[__name__])


def stats_of(look) -> dict:
    """What was answered, in time."""
    assert look.state == "ok"
    return look.snapshot.stats


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


def test_viewers_share_one_question(play):
    async def run():
        scheduler = Scheduler(0.05)
        snapshots = Snapshots(scheduler, min_interval_s=0)
        found = await asyncio.gather(*(snapshots.get(1.0) for _ in range(20)))
        assert {stats_of(one)["question"] for one in found} == {1}
        assert stats_of(await snapshots.get(1.0)) == {"question": 1}
        told = json.loads(found[0].body({}))
        assert 0 <= told.pop("age_s") < 1 and told == {"state": "ok", "question": 1}
        await asyncio.sleep(0.06)
        assert stats_of(await snapshots.get(0.05)) == {"question": 2}

    play(run)


def test_an_answer_is_never_older_than_asked_for(play):
    """With age 0 the question is sent after the call, also while another one is under way."""

    async def run():
        scheduler = Scheduler(0.03)
        snapshots = Snapshots(scheduler, min_interval_s=0)
        early = asyncio.create_task(snapshots.get(0))
        await asyncio.sleep(0.01)
        called_at = time.monotonic()
        late = await snapshots.get(0)
        assert late.snapshot.asked_at >= called_at
        assert stats_of(await early)["question"] == 1 and stats_of(late)["question"] == 2

    play(run)


def test_questions_keep_their_distance(play):
    async def run():
        scheduler = Scheduler()
        snapshots = Snapshots(scheduler, min_interval_s=0.05)
        for _ in range(4):
            await snapshots.get(0)
        gaps = [b - a for a, b in zip(scheduler.asked, scheduler.asked[1:])]
        assert len(gaps) == 3 and min(gaps) >= 0.049

    play(run)


def test_a_busy_schedulers_last_answer_is_told_with_its_age(play):
    """However long a step takes, and however new an answer is asked for."""

    async def run():
        scheduler = Scheduler()
        snapshots = Snapshots(scheduler, min_interval_s=0, patience_s=0.05)
        assert stats_of(await snapshots.get(0)) == {"question": 1}
        scheduler.delay_s = 0.4
        ages = []
        for _ in range(3):
            look = await snapshots.get(0)
            told = json.loads(look.body({}))
            assert (told["state"], told["question"]) == ("busy", 1)
            ages.append(told["age_s"])
        assert ages == sorted(ages) and ages[0] >= 0.049 and ages[2] >= 0.149
        assert len(scheduler.asked) == 2  # the second question is still under way
        # Who is content with an older answer gets it, and no word of a busy server.
        assert stats_of(await snapshots.get(60)) == {"question": 1}
        scheduler.delay_s = 0
        await asyncio.sleep(0.4)
        assert stats_of(await snapshots.get(0))["question"] >= 2

    play(run)


def test_before_the_first_answer_nothing_is_known(play):
    async def run():
        snapshots = Snapshots(Scheduler(0.2), min_interval_s=0, patience_s=0.05)
        look = await snapshots.get()
        assert look.snapshot is None
        told = json.loads(look.body(not_known({"model": "m"})))
        assert told["state"] == "busy"
        assert told["age_s"] is told["pool"] is told["sums"] is told["uptime_s"] is None
        assert told["server"] == {"model": "m", "schedulers": None} and told["requests"] == []
        merged = merge([state("a", 500, 64, 64)], {"model": "m"})
        assert set(told) - {"state", "age_s"} == set(merged)  # the same fields

    play(run)


def test_a_scheduler_that_has_ended_is_named_at_once(play):
    async def run():
        reason = ""
        snapshots = Snapshots(Scheduler(60), lambda: reason, min_interval_s=0, patience_s=0.05)
        assert (await snapshots.get()).state == "busy"
        reason = "scheduler_0 (process 7) has ended with status -9"
        begin = time.monotonic()
        with pytest.raises(SchedulerSilent, match="status -9"):
            await snapshots.get()
        assert time.monotonic() - begin < 0.04

    play(run)


def test_a_viewer_that_goes_away_takes_no_answer_along(play):
    async def run():
        snapshots = Snapshots(Scheduler(0.05), min_interval_s=0)
        leaving = asyncio.create_task(snapshots.get())
        staying = asyncio.create_task(snapshots.get())
        await asyncio.sleep(0.01)
        leaving.cancel()
        assert stats_of(await staying) == {"question": 1}

    play(run)


def test_a_failed_question_is_told_and_the_next_one_asked(play):
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
        assert stats_of(await snapshots.get()) == {"fine": 1}

    play(run)


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


def test_an_id_of_any_length_is_shown_short():
    """Each poll of each viewer would carry it; two that begin alike are still told apart."""
    one, other = state("x" * 300_000, 500, 64, 64), state("x" * 300_001, 90, 90, 0)
    merged = merge([one, other], {"model": "m"})
    for name in ("requests", "queue"):
        ids = {item["rid"] for item in merged[name]}
        assert len(ids) == 2 and all(len(rid) == MOST_ID_CHARACTERS for rid in ids)
    known = merge([state("a" * MOST_ID_CHARACTERS, 500, 64, 64)], {"model": "m"})
    assert known["requests"][0]["rid"] == "a" * MOST_ID_CHARACTERS


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
