# SPDX-License-Identifier: Apache-2.0
"""`BudgetAdder` on SGLang's own arithmetic: rows with a budget are never retracted, in traffic.

tests/core has the same traffic without SGLang. Here ``PrefillAdder`` and ``PrefillBudget`` are the
real ones, and requests with full KV run among those with a budget.
"""

from collections import Counter

import pytest

from pool_simulation import LONGFLOW, STREAMING, TRAFFIC, Request, budget, simulate
from real_adder import AdderSimulation, without_a_server
from sglang_longflow.core import runtime
from sglang_longflow.core.slots import Step
from sglang_longflow.settings.config import LongFlowConfig

pytestmark = pytest.mark.sglang

SMALL_CHUNKS = {
    "steps": 300,
    "pool_tokens": 200,
    "scale": 60,
    "policies": (STREAMING, LONGFLOW),
    "chunk": 48,
}


@pytest.fixture(autouse=True)
def active(monkeypatch):
    without_a_server(monkeypatch)
    monkeypatch.setattr(runtime, "_current", runtime.Runtime(LongFlowConfig(kv_budget=100)))


def full_kv(prompt_tokens, max_new_tokens):
    """Makes requests with full KV of at most so many tokens."""

    def make(rng):
        prompt = [(rng.random(),) for _ in range(rng.randint(1, prompt_tokens))]
        new = rng.randint(1, max_new_tokens)
        return Request(prompt, new, rng.randint(1, new), budget(0))

    return make


def run(cases, traffic, **rules):
    """What was counted in so many runs of a kind of traffic."""
    seen = Counter()
    for case in range(cases):
        seen += simulate(case, kind=AdderSimulation, **traffic, **rules).counts
    return seen


@pytest.mark.parametrize("ignore_eos", [False, True])
@pytest.mark.parametrize("traffic", TRAFFIC)
def test_budgeted_traffic_is_never_retracted(traffic, ignore_eos):
    seen = run(4, TRAFFIC[traffic], ignore_eos=ignore_eos)
    assert seen["retracted"] == 0
    for step in (Step.APPEND, Step.CUT, Step.OWN, Step.OVERWRITE):
        assert seen[step] > 0, step


@pytest.mark.parametrize(("boldness", "ignore_eos"), [(0.1, False), (1.0, False), (1.0, True)])
@pytest.mark.parametrize("traffic", TRAFFIC)
def test_beside_full_kv_only_full_kv_is_retracted(traffic, boldness, ignore_eos):
    """The simulation fails where a row with a budget would be."""
    tokens = TRAFFIC[traffic]["pool_tokens"]
    beside = full_kv(tokens // 4, tokens // 4)
    seen = run(4, TRAFFIC[traffic], beside=beside, boldness=boldness, ignore_eos=ignore_eos)
    assert seen["full KV"] > 10


def test_the_simulation_retracts_full_kv():
    """Otherwise the claim above would hold for nothing."""
    beside = full_kv(8, 8)
    assert run(12, TRAFFIC["tiny pool"], beside=beside, boldness=0.1)["retracted"] > 3


@pytest.mark.parametrize("traffic", ["chunked prompts", "chunked, all overwrite", "small chunks"])
def test_chunks_that_leave_room_for_shorter_prompts(monkeypatch, traffic):
    """The rest of a long prompt with full KV stays reserved while others join its passes."""
    without_a_server(monkeypatch, "shortest-prefill-first")
    found = SMALL_CHUNKS if traffic == "small chunks" else TRAFFIC[traffic]
    beside = full_kv(4 * found["pool_tokens"] // 5, 10)
    seen = run(16, found, beside=beside, boldness=0.5, shortest_first=True)
    assert seen["limited chunks"] > 20
