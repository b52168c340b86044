# SPDX-License-Identifier: Apache-2.0
"""Admission knows the bounded footprint: more rows at once, nothing retracted (5)."""

from __future__ import annotations

import asyncio

import pytest

import harness
from harness import COULD_END, greedy, prompt

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def engine(endless):
    """A pool of 1,000; full-KV requests are admitted boldly, so that they outgrow it."""
    with harness.engine(
        endless,
        probe=True,
        max_total_tokens=1000,
        kv_budget=96,
        kv_budget_allow_full=True,
        chunked_prefill_size=128,
        schedule_conservativeness=0.3,
    ) as running:
        yield running


def run(engine, count: int, budget: int, new_tokens: int, prompt_tokens: int = 20):
    """`count` requests at once on a cold cache; returns their results and the probe's report."""
    harness.cold(engine)
    engine.probe_report()
    prompts = [prompt(prompt_tokens, 1000 + i) for i in range(count)]
    results = engine.generate(
        input_ids=prompts,
        sampling_params=[greedy(new_tokens, kv_budget=budget) | COULD_END] * count,
    )
    assert all(len(item["output_ids"]) == new_tokens for item in results)
    report = engine.probe_report()
    assert report["idle_available"] + report["idle_evictable"] == report["total"]
    return results, report


def test_peak_running_is_pool_over_budget(engine):
    """1,000 slots hold exactly 10 rows of 96, none is retracted; full KV has to retract."""
    _, budgeted = run(engine, 24, 96, 300)
    assert budgeted["peak_running"] == 1000 // 96
    assert budgeted["retractions"] == 0
    _, full = run(engine, 24, 0, 300)
    assert full["retractions"] > 0


def test_rows_that_cannot_reach_the_budget_are_admitted_by_their_length(engine):
    """Footprint min(prompt + max_new_tokens, budget): 200 tokens each, 5 at once in 1,000.

    Longer than a busy machine takes to send them.
    """
    _, report = run(engine, 12, 500, 180)
    assert report["peak_running"] == 1000 // 200
    assert report["retractions"] == 0


def test_long_prompts_share_a_small_pool(engine):
    """Prompts over the budget hold their length in prefill only; freed slots are used at once."""
    _, report = run(engine, 12, 64, 200, prompt_tokens=500)
    assert report["peak_running"] >= 7
    assert report["retractions"] == 0


def test_full_neighbours_are_retracted_first(engine):
    """When full-KV requests outgrow the pool, budgeted rows keep running and keep their tokens."""
    prompts = [prompt(20, 1000 + i) for i in range(10)]
    alone = [
        engine.generate(input_ids=p, sampling_params=greedy(300, kv_budget=64))["output_ids"]
        for p in prompts[:4]
    ]
    mixed = engine.generate(
        input_ids=prompts,
        sampling_params=[
            greedy(300, kv_budget=budget) | COULD_END for budget in [64] * 4 + [0] * 6
        ],
    )
    assert harness.outputs(mixed)[:4] == alone
    assert all(len(tokens) == 300 for tokens in harness.outputs(mixed))
    retractions = [item["meta_info"]["num_retractions"] for item in mixed]
    assert sum(retractions[:4]) == 0 < sum(retractions[4:])


def test_answers_longer_than_the_pool(endless):
    """A pool of 300 slots serves 1,200 tokens a request."""
    with harness.engine(endless, probe=True, max_total_tokens=300, kv_budget=64) as engine:
        results, report = run(engine, 6, 64, 1200)
        assert all(item["meta_info"]["kv_resident_tokens"] == 64 for item in results)
        assert report["peak_running"] == 4
        assert report["retractions"] == 0


def test_a_retracted_row_starts_over(endless):
    """SGLang's own test switch forces retractions: rows end with all their tokens and no leak."""
    with harness.engine(
        endless,
        probe=True,
        kv_budget=64,
        max_total_tokens=1500,
        fresh=True,
        env={"SGLANG_TEST_RETRACT": "1"},
    ) as engine:
        results, _ = run(engine, 6, 64, 120)
        assert sum(item["meta_info"]["num_retractions"] for item in results) > 0
        assert all(item["meta_info"]["kv_resident_tokens"] <= 64 for item in results)


def test_shorter_requests_leave_a_long_prompt_its_slots(endless):
    """They pass it while it is prefilled in chunks; SGLang itself counts its next chunk alone."""
    with harness.engine(
        endless,
        probe=True,
        kv_budget=96,
        kv_budget_allow_full=True,
        max_total_tokens=1000,
        chunked_prefill_size=64,
        schedule_policy="shortest-prefill-first",
    ) as engine:

        async def scene():
            long = engine.async_generate(
                input_ids=prompt(800, 1), sampling_params=greedy(5, kv_budget=0)
            )
            waiting = [asyncio.ensure_future(long)]
            await asyncio.sleep(0.03)  # its first chunks run
            for i in range(20):
                short = dict(input_ids=prompt(30, 2 + i), sampling_params=greedy(150))
                waiting.append(asyncio.ensure_future(engine.async_generate(**short)))
            return await asyncio.gather(*waiting)

        found = engine.loop.run_until_complete(scene())
        assert [len(one["output_ids"]) for one in found] == [5] + [150] * 20
        assert engine.probe_report()["retractions"] == 0
