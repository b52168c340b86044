"""The radix cache stays on: hits are used and what the tree holds is never written (3)."""

from __future__ import annotations

import harness
import pytest
from harness import greedy, prompt

pytestmark = pytest.mark.e2e
COMMON = prompt(200, 1)
FIRST, SECOND = COMMON + prompt(40, 2), COMMON + prompt(55, 3)


@pytest.fixture(scope="module")
def cold(tiny_models):
    """Tokens of each request alone on a cold server, per budget."""
    tokens = {}
    with harness.engine(tiny_models("llama"), kv_budget=96) as engine:
        for budget in (96, 300):
            for name, ids in (("first", FIRST), ("second", SECOND)):
                engine.flush_cache()
                result = engine.generate(
                    input_ids=ids, sampling_params=greedy(150, kv_budget=budget)
                )
                assert result["meta_info"]["cached_tokens"] == 0
                tokens[name, budget] = result["output_ids"]
    return tokens


@pytest.mark.parametrize("budget", [96, 300])
def test_a_shared_prefix_is_hit_and_not_written(tiny_models, cold, budget):
    """Budget 96 cuts the prompts; budget 300 shares their slots until the rows overwrite."""
    with harness.engine(tiny_models("llama"), probe=True, kv_budget=96) as engine:
        first = engine.generate(input_ids=FIRST, sampling_params=greedy(150, kv_budget=budget))
        second = engine.generate(input_ids=SECOND, sampling_params=greedy(150, kv_budget=budget))
        assert second["meta_info"]["cached_tokens"] >= 200
        assert first["output_ids"] == cold["first", budget]
        assert second["output_ids"] == cold["second", budget]
        # At once, over a warm tree that both lock: each must copy before it overwrites.
        both = engine.generate(
            input_ids=[FIRST, SECOND, FIRST],
            sampling_params=[greedy(150, kv_budget=budget)] * 3,
        )
        assert all(item["meta_info"]["cached_tokens"] >= 200 for item in both)
        wanted = [cold[name, budget] for name in ("first", "second", "first")]
        assert harness.outputs(both) == wanted
        report = engine.probe_report()  # every step compared the bytes of the tree's slots
        assert report["tree_slots_checked"] > 100_000
        assert report["peak_full_rows"] == 3
        assert report["idle_available"] + report["idle_evictable"] == report["total"]


def test_multi_turn_reuse_of_requests_that_never_overwrote(tiny_models):
    """The second turn hits the first turn's prompt and answer."""
    with harness.engine(tiny_models("llama"), probe=True, kv_budget=400) as engine:
        turn = engine.generate(input_ids=prompt(80, 9), sampling_params=greedy(60))
        history = prompt(80, 9) + turn["output_ids"]
        again = engine.generate(input_ids=history + prompt(10, 10), sampling_params=greedy(20))
        assert again["meta_info"]["cached_tokens"] == len(history) - 1


def test_an_overwritten_answer_is_not_reused(tiny_models):
    """After overwriting, only the intact prompt is in the tree."""
    with harness.engine(tiny_models("llama"), probe=True, kv_budget=96) as engine:
        turn = engine.generate(input_ids=prompt(80, 9), sampling_params=greedy(60))
        history = prompt(80, 9) + turn["output_ids"]
        again = engine.generate(
            input_ids=history + prompt(40, 10), sampling_params=greedy(20, kv_budget=400)
        )
        assert again["meta_info"]["cached_tokens"] == 80
