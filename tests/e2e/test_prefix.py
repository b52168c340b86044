# SPDX-License-Identifier: Apache-2.0
"""The radix cache stays on: hits are used and what the tree holds is never written (3)."""

from __future__ import annotations

import pytest

import harness
from harness import greedy, prompt

pytestmark = pytest.mark.e2e
COMMON = prompt(200, 1)
FIRST, SECOND = COMMON + prompt(40, 2), COMMON + prompt(55, 3)


@pytest.fixture(scope="module")
def engine(tiny_models):
    settings = dict(kv_budget=96, kv_budget_max=400)
    with harness.engine(tiny_models("llama"), probe=True, **settings) as running:
        yield running


def run(engine, ids, new_tokens, budget):
    return engine.generate(input_ids=ids, sampling_params=greedy(new_tokens, kv_budget=budget))


@pytest.mark.parametrize("budget", [96, 300])
def test_a_shared_prefix_is_hit_and_not_written(engine, budget):
    """Budget 96 cuts the prompts; budget 300 shares their slots until the rows overwrite."""
    alone = {}
    for name, ids in (("first", FIRST), ("second", SECOND)):
        harness.cold(engine)
        cold = run(engine, ids, 150, budget)
        assert cold["meta_info"]["cached_tokens"] == 0
        alone[name] = cold["output_ids"]

    harness.cold(engine)
    engine.probe_report()
    assert run(engine, FIRST, 150, budget)["output_ids"] == alone["first"]
    second = run(engine, SECOND, 150, budget)
    assert second["meta_info"]["cached_tokens"] >= 200
    assert second["output_ids"] == alone["second"]
    # At once, over a warm tree that all lock: each must copy before it overwrites.
    both = engine.generate(
        input_ids=[FIRST, SECOND, FIRST],
        sampling_params=[greedy(150, kv_budget=budget)] * 3,
    )
    assert all(item["meta_info"]["cached_tokens"] >= 200 for item in both)
    assert harness.outputs(both) == [alone[name] for name in ("first", "second", "first")]
    report = engine.probe_report()  # every step compared the bytes of the tree's slots
    assert report["tree_slots_checked"] > 50_000
    assert report["peak_full_rows"] == 3
    assert report["idle_available"] + report["idle_evictable"] == report["total"]


def test_multi_turn_reuse_of_requests_that_never_overwrote(engine):
    """The second turn hits the first turn's prompt and answer (its last token is optional)."""
    harness.cold(engine)
    turn = run(engine, prompt(80, 9), 60, 400)
    history = prompt(80, 9) + turn["output_ids"]
    again = run(engine, history + prompt(10, 10), 20, 400)
    # Overlap scheduling has computed the last token too when it learns that the turn is over.
    assert again["meta_info"]["cached_tokens"] in (len(history) - 1, len(history))


def test_an_overwritten_answer_is_not_reused(engine):
    """After overwriting, only the intact prompt is in the tree."""
    harness.cold(engine)
    turn = run(engine, prompt(80, 9), 60, 96)
    history = prompt(80, 9) + turn["output_ids"]
    again = run(engine, history + prompt(40, 10), 20, 400)
    assert again["meta_info"]["cached_tokens"] == 80
