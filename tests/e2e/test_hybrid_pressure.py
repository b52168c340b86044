# SPDX-License-Identifier: Apache-2.0
"""Hybrid models where memory is short: of recurrent states, and of slots for keys and values."""

from __future__ import annotations

import pytest

import harness
from harness import greedy, prompt
from hybrid_models import FLOAT32_STATES
from token_oracle import expected, load

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]
#: With a tree and overlap SGLang counts five states a request.
STATES = 10


def assert_nothing_is_lost(report) -> None:
    assert report["idle_available"] + report["idle_evictable"] == report["total"]
    assert report["idle_protected"] == 0
    assert report["idle_states"] == report["total_states"] > 0


def test_requests_wait_for_states(tiny_models):
    """Two run at once; prefixes in the tree give up their states, and their slots, for the rest."""
    folder = tiny_models("qwen3_next")
    model = load(folder)
    common = prompt(130, 1)
    cases = [
        (common[: 130 - 3 * i] + prompt(length, 10 + i), budget)
        for i, (length, budget) in enumerate(
            [(5, 48), (70, 97), (20, 0), (90, 48), (1, 160), (40, 0), (66, 97), (8, 200)]
        )
    ]
    wanted = [expected(model, ids, budget or None, 60) for ids, budget in cases]
    with harness.engine(
        folder,
        probe=True,
        env=FLOAT32_STATES,
        kv_budget=64,
        kv_budget_max=200,
        kv_budget_allow_full=True,
        max_mamba_cache_size=STATES,
        max_total_tokens=1000,
        chunked_prefill_size=128,
    ) as engine:
        for _ in range(3):
            got = engine.generate(
                input_ids=[ids for ids, _ in cases],
                sampling_params=[greedy(60, kv_budget=budget) for _, budget in cases],
            )
            assert harness.outputs(got) == wanted
        report = engine.probe_report()
        assert report["peak_running"] == STATES // 5
        assert_nothing_is_lost(report)
        # All at once on what the others left in the tree, aborted while they run and wait.
        asked = [
            engine.async_generate(
                input_ids=ids, sampling_params=greedy(400, kv_budget=budget), rid=f"aborted-{i}"
            )
            for i, (ids, budget) in enumerate(cases)
        ]
        engine.loop.run_until_complete(_abort(engine, asked))
        report = engine.probe_report()
        assert_nothing_is_lost(report)


async def _abort(engine, asked) -> None:
    import asyncio

    running = [asyncio.ensure_future(one) for one in asked]
    await asyncio.sleep(1)
    for i in range(len(running)):
        engine.tokenizer_manager.abort_request(rid=f"aborted-{i}")
        await asyncio.sleep(0.05)
    for answer in await asyncio.gather(*running):
        assert answer["meta_info"]["finish_reason"]["type"] == "abort"


def test_full_kv_is_retracted_beside_rows_that_are_not(tiny_models):
    """A retracted request starts over, and its states with it; its tokens are the same."""
    folder = tiny_models("falcon_h1")
    model = load(folder)
    ends = {"ignore_eos": False}  # SGLang then hopes for an early end
    full = [(prompt(20, 100 + i), 0) for i in range(9)]
    bounded = [(prompt(20, 200 + i), 64) for i in range(3)]
    cases = [*full, *bounded]
    wanted = [expected(model, ids, budget or None, 150) for ids, budget in cases]
    with harness.engine(
        folder,
        probe=True,
        env=FLOAT32_STATES,
        kv_budget=64,
        kv_budget_allow_full=True,
        max_mamba_cache_size=80,
        max_total_tokens=900,
        schedule_conservativeness=0.3,
    ) as engine:
        got = engine.generate(
            input_ids=[ids for ids, _ in cases],
            sampling_params=[greedy(150, kv_budget=budget) | ends for _, budget in cases],
        )
        assert harness.outputs(got) == wanted
        retracted = [item["meta_info"]["num_retractions"] for item in got]
        assert sum(retracted) > 0 and sum(retracted[len(full) :]) == 0
        assert_nothing_is_lost(engine.probe_report())
