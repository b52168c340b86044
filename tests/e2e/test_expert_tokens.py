# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts with ordinary attention: tokens equal an independent plain-PyTorch decode.

Hugging Face's own modules compute all but attention; no code is shared with the package.
"""

from __future__ import annotations

from functools import partial

import pytest

import harness
from churn import churn
from expert_models import KINDS
from harness import greedy, prompt
from reference_rankings import rankings_of
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
    cases = [
        (prompt(length, seed), budget)
        for seed, length in enumerate((9, 47, 96, 150))
        for budget in (48, 97)
    ]
    # At its last token a row of 40 + 130 - 1 is just full; over 200 it never is.
    cases += [(prompt(40, 20), 169), (prompt(40, 20), 200), (prompt(140, 21), 0), (prompt(9, 0), 0)]
    wanted = [expected(model, ids, budget or None, 130) for ids, budget in cases]
    assert wanted[0] != wanted[-1]  # forgetting shows
    with harness.engine(
        folder,
        probe=True,
        env=TRACE,
        kv_budget=64,
        kv_budget_max=200,
        kv_budget_allow_full=True,
        max_total_tokens=3000,
    ) as engine:
        got = engine.generate(
            input_ids=[ids for ids, _ in cases],
            sampling_params=[greedy(130, kv_budget=budget) for _, budget in cases],
            rid=[f"batch-{i}" for i in range(len(cases))],
        )
        alone = {}
        for i in (4, 7, 10):
            ids, budget = cases[i]
            params = greedy(130, kv_budget=budget)
            alone[i] = engine.generate(input_ids=ids, sampling_params=params, rid=f"alone-{i}")
        report = engine.probe_report()
    for (ids, budget), item, tokens in zip(cases, got, wanted, strict=True):
        if not budget:
            assert item["output_ids"] == tokens
            continue
        assert_same_but_for_ties(model, ids, budget, item, tokens, report["trace"])
        stored, meta = len(ids) + 129, item["meta_info"]
        assert meta["kv_resident_tokens"] == min(budget, stored)
        assert meta["kv_overwritten_tokens"] + meta["kv_cut_tokens"] == max(0, stored - budget)
    for i, item in alone.items():
        ids, budget = cases[i]
        if budget:
            assert_same_but_for_ties(model, ids, budget, item, wanted[i], report["trace"])
        else:
            assert item["output_ids"] == wanted[i]
    # Each row but those of 200 and of full KV.
    assert report["peak_full_rows"] >= 8 and report["retractions"] == 0
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
    protect = dict(protect_sink_tokens=4, protect_recent_tokens=16)  # longflow-novel's
    cases = [
        (prompt(100, 1), 80, "longflow-novel"),
        (prompt(66, 2), 72, "longflow"),
        (prompt(70, 3), 72, "tova"),
        (prompt(25, 4), 0, "longflow"),
    ]

    def wanted_tokens(ids, budget, policy):
        how = dict(policy=policy)
        if policy == "longflow-novel":
            how = dict(ranking=rankings_of(policy, budget, model.config.num_hidden_layers))
        return expected(model, ids, budget or None, 30, **protect, **how)

    wanted = [wanted_tokens(*case) for case in cases]
    with harness.engine(
        folder,
        probe=True,
        interpret=True,
        kv_decode_kernel="triton",
        kv_policy="longflow-novel",
        kv_budget=96,
        kv_budget_allow_full=True,
    ) as engine:
        got = engine.generate(
            input_ids=[ids for ids, _, _ in cases],
            sampling_params=[greedy(30, kv_budget=b, kv_policy=p) for _, b, p in cases],
        )
        assert harness.outputs(got) == wanted
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
