# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts with ordinary attention: tokens equal an independent plain-PyTorch decode.

Hugging Face's own modules compute all but attention; no code is shared with the package.
"""

from __future__ import annotations

from functools import partial

import pytest

import harness
import kind_cases
from churn import churn
from expert_models import KINDS
from harness import greedy, prompt
from token_oracle import assert_same_but_for_ties, expected, load

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]
variant = partial(pytest.param, marks=pytest.mark.variant)
TRACE = {"LONGFLOW_PROBE_TRACE": "1"}
COMMON = prompt(200, 1)
FIRST, SECOND = COMMON + prompt(40, 2), COMMON + prompt(55, 3)


@pytest.mark.parametrize(
    "kind", ["minimax_m2", "glm4_moe_normed", variant("glm4_moe"), variant("qwen3_moe")]
)
def test_every_kind(tiny_models, kind):
    """Budgets under, at and over the length, prompts that are cut and that are not, full KV; all in
    one batch, then alone on slots that others left."""
    folder = tiny_models(kind)
    model = load(folder)
    wanted = kind_cases.wanted_tokens(model)
    with harness.engine(folder, probe=True, env=TRACE, **kind_cases.SETTINGS) as engine:
        report = kind_cases.assert_tokens(engine, model, wanted)
    assert report["overlap"] and report["radix"]


@pytest.mark.variant
@pytest.mark.parametrize("kind", ["minimax_m2", "glm4_moe"])
def test_prefix_hits_and_prompts_in_chunks(tiny_models, kind):
    """Budget 96 cuts the prompts; budget 300 shares their slots until the rows overwrite."""
    folder = tiny_models(kind)
    model = load(folder)
    with harness.engine(
        folder, probe=True, env=TRACE, kv_budget=96, kv_budget_max=400, chunked_prefill_size=64
    ) as engine:
        seen = []
        for budget in (96, 300):
            harness.cold(engine)
            params = greedy(120, kv_budget=budget)
            for turn, which in enumerate(((FIRST,), (FIRST, SECOND, FIRST))):
                items = engine.generate(
                    input_ids=list(which),
                    sampling_params=[params] * len(which),
                    rid=[f"{budget}-{turn}-{i}" for i in range(len(which))],
                )
                cached = [item["meta_info"]["cached_tokens"] for item in items]
                assert min(cached) >= 200 if turn else cached == [0]
                seen += [(ids, budget, item) for ids, item in zip(which, items, strict=True)]
        report = engine.probe_report()  # every step compared the bytes of the tree's slots
    wanted = {
        (len(ids), budget): expected(model, ids, budget, 120)
        for ids in (FIRST, SECOND)
        for budget in (96, 300)
    }
    for ids, budget, item in seen:
        tokens = wanted[len(ids), budget]
        assert_same_but_for_ties(model, ids, budget, item, tokens, report["trace"])
    assert report["tree_slots_checked"] > 10_000
    assert report["idle_available"] + report["idle_evictable"] == report["total"]


@pytest.mark.variant
def test_the_fused_kernels_with_twelve_query_heads_a_kv_head(tiny_models):
    """In Triton's interpreter: prompts that are cut and that fill in decode, full KV beside them,
    the default policy and others."""
    folder = tiny_models("glm4_moe")
    model = load(folder)
    with harness.engine(folder, probe=True, **kind_cases.FUSED_SETTINGS) as engine:
        kind_cases.assert_fused_tokens(engine, model, model.config.num_hidden_layers, 30)
        assert engine.probe_report()["peak_full_rows"] == 3


@pytest.mark.parametrize("kind", ["minimax_m2", variant("glm4_moe_normed")])
def test_nothing_leaks_and_no_budget_is_exceeded(tiny_models, kind):
    """Mixed requests with aborts; SGLang's strict checks and ours after every step."""
    with harness.engine(
        tiny_models(kind),
        probe=True,
        kv_budget=96,
        kv_budget_allow_full=True,
        stream_interval=4,
        max_total_tokens=2500,
        chunked_prefill_size=128,
    ) as engine:
        done = engine.loop.run_until_complete(churn(engine, 120, seed=5))
        assert sum(done.values()) == 120
        assert done["aborted"] >= 3 and done["finished"] >= 50
        report = engine.probe_report()
        assert report["idle_available"] + report["idle_evictable"] == report["total"]
        assert report["idle_protected"] == 0
        harness.cold(engine)
        report = engine.probe_report()
        assert report["idle_available"] == report["total"]


def test_every_kind_is_tested_here():
    (marks,) = [mark for mark in test_every_kind.pytestmark if mark.name == "parametrize"]
    kinds = {getattr(kind, "values", (kind,))[0] for kind in marks.args[1]}
    assert kinds == {*KINDS, "qwen3_moe"}
