# SPDX-License-Identifier: Apache-2.0
"""Greedy tokens equal an independent plain-PyTorch LongFlow decode (requirement 1)."""

from __future__ import annotations

import pytest

import harness
import longflow_oracle
from harness import greedy, prompt
from reference_rankings import ReferenceRow, rankings_of
from sglang_longflow.policies import policy_names
from token_oracle import assert_same_but_for_ties, expected, load

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]
BUDGETS = (48, 64, 97)


def test_real_model_alone_and_in_a_batch(smollm2):
    """SmolLM2, prompts shorter and longer than the budget, 120 new tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    texts = [
        "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning. How many "
        "does she sell? Think step by step.",
        " ".join(f"Box {i} holds {i * 7 % 13} apples and {i * 5 % 11} pears." for i in range(9)),
        "The capital of France is",
    ]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    assert len(ids[0]) < 48 < 97 < len(ids[1])
    model = load(smollm2)
    wanted = {
        (i, budget): expected(model, ids[i], budget, 120)
        for i, budget in ((0, 48), (1, 97), (1, 64), (2, 64))
    }
    with harness.engine(smollm2, probe=True, kv_budget=64, kv_budget_max=97) as engine:
        alone = engine.generate(input_ids=[ids[0]], sampling_params=[greedy(120, kv_budget=48)])
        assert harness.outputs(alone)[0] == wanted[0, 48]
        together = engine.generate(
            input_ids=[ids[i] for i, _ in wanted],
            sampling_params=[greedy(120, kv_budget=b) for _, b in wanted],
        )
        assert harness.outputs(together) == list(wanted.values())
        for (i, budget), item in zip(wanted, together, strict=True):
            meta = item["meta_info"]
            assert meta["kv_budget"] == meta["kv_resident_tokens"] == budget
            stored = len(ids[i]) + 119
            dropped = meta["kv_overwritten_tokens"] + meta["kv_cut_tokens"]
            assert dropped == stored - budget
        assert engine.probe_report()["peak_full_rows"] == len(wanted)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_every_geometry(tiny_models, kind):
    """GQA, MHA and MQA: every budget, short and long prompts, all in one batch; then alone."""
    folder = tiny_models(kind)
    model = load(folder)
    cases = [
        (prompt(length, seed), budget)
        for seed, length in enumerate((9, 47, 96, 200))
        for budget in BUDGETS
    ]
    wanted = [expected(model, ids, budget, 220) for ids, budget in cases]
    # One of them with prompts in chunks, under overlap scheduling.
    chunks = dict(chunked_prefill_size=64) if kind == "qwen2" else {}
    with harness.engine(
        folder,
        probe=True,
        env={"LONGFLOW_PROBE_TRACE": "1"},
        kv_budget=64,
        kv_budget_max=97,
        max_total_tokens=3000,
        **chunks,
    ) as engine:
        got = engine.generate(
            input_ids=[ids for ids, _ in cases],
            sampling_params=[greedy(220, kv_budget=budget) for _, budget in cases],
            rid=[f"batch-{i}" for i in range(len(cases))],
        )
        alone = {}
        for i in (4, 11):
            ids, budget = cases[i]
            params = greedy(220, kv_budget=budget)
            alone[i] = engine.generate(input_ids=ids, sampling_params=params, rid=f"alone-{i}")
        report = engine.probe_report()
        for (ids, budget), item, tokens in zip(cases, got, wanted, strict=True):
            assert_same_but_for_ties(model, ids, budget, item, tokens, report["trace"])
        for i, item in alone.items():  # a row's sums do not depend on who shares its batch
            assert item["output_ids"] == got[i]["output_ids"]
        assert report["overlap"] and report["radix"] and report["retractions"] == 0


def test_mixture_of_experts(tiny_models):
    """A tiny Qwen3-MoE: its rows stay bounded and equal themselves alone and in a batch."""
    folder = tiny_models("qwen3_moe")
    cases = [prompt(length, seed) for seed, length in enumerate((20, 120))]
    with harness.engine(folder, probe=True, kv_budget=64) as engine:
        alone = [engine.generate(input_ids=[c], sampling_params=[greedy(150)]) for c in cases]
        together = engine.generate(input_ids=cases, sampling_params=[greedy(150)] * 2)
        assert harness.outputs(together) == [harness.outputs(a)[0] for a in alone]
        assert all(item["meta_info"]["kv_resident_tokens"] == 64 for item in together)


def test_scheduling_does_not_change_tokens(tiny_models):
    """Overlap off, radix cache off, prompts in chunks: the same tokens."""
    folder = tiny_models("llama")
    model = load(folder)
    cases = [
        (prompt(length, 50 + length), budget) for length in (30, 150, 333) for budget in BUDGETS
    ]
    wanted = [expected(model, ids, budget, 120) for ids, budget in cases]
    with harness.engine(
        folder,
        probe=True,
        kv_budget=64,
        kv_budget_max=97,
        disable_overlap_schedule=True,
        disable_radix_cache=True,
        chunked_prefill_size=64,
    ) as engine:
        for got in harness.two_runs(engine, cases, 120):
            assert got == wanted
        report = engine.probe_report()
        assert not report["overlap"] and not report["radix"]


def test_protected_tokens_and_policies_without_memory(tiny_models):
    """protect_sink_tokens, protect_recent_tokens and the oracle's own policies follow it."""
    folder = tiny_models("llama")
    model = load(folder)
    protect = dict(protect_sink_tokens=4, protect_recent_tokens=7)
    cases = [
        (prompt(length, 80 + length), budget, policy)
        for length in (10, 130)
        for budget in BUDGETS
        for policy in longflow_oracle.POLICIES
    ]
    wanted = [expected(model, ids, b, 200, policy=p, **protect) for ids, b, p in cases]
    settings = dict(kv_budget=64, kv_budget_max=97)
    settings |= dict(kv_protect_sink_tokens=4, kv_protect_recent_tokens=7)
    with harness.engine(folder, probe=True, **settings) as engine:
        got = engine.generate(
            input_ids=[ids for ids, _, _ in cases],
            sampling_params=[greedy(200, kv_budget=b, kv_policy=p) for _, b, p in cases],
        )
        assert harness.outputs(got) == wanted


@pytest.mark.parametrize(
    "names",
    [
        ("vatp", "h2o", "h2o-last", "keydiff", "longflow-peak"),
        ("longflow-novel",),
        ("snapkv-decode",),
        ("rkv",),
        ("rpc",),
    ],
    ids=lambda names: names[0],
)
def test_policies_that_remember(tiny_models, names):
    """Prompts that are cut and that are not, twice in the same slots, other policies beside."""
    folder = tiny_models("llama")
    model = load(folder)
    cases = [(prompt(length, 90 + length), 72, name) for name in names for length in (25, 120)]
    wanted = [
        expected(
            model,
            ids,
            72,
            100,
            protect_sink_tokens={"vatp": 20, "longflow-novel": 4}.get(name, 0),
            ranking=rankings_of(name, 72, len(model.model.layers)),
        )
        for ids, _, name in cases
    ]
    with harness.engine(folder, probe=True, kv_budget=72, kv_policy=names[0]) as engine:
        for _ in range(2):
            harness.cold(engine)
            got = engine.generate(
                input_ids=[ids for ids, _, _ in cases],
                sampling_params=[greedy(100, kv_budget=b, kv_policy=p) for _, b, p in cases],
            )
            assert harness.outputs(got) == wanted


@pytest.mark.parametrize("name", ["snapkv-decode", "vatp"])
def test_a_row_that_held_a_larger_budget_is_used_again(tiny_models, name):
    """Where the next victim of the row before lay means nothing to a row that has just filled."""
    folder = tiny_models("llama")
    before, ids = prompt(25, 1), prompt(30, 2)
    wanted = expected(
        load(folder),
        ids,
        72,
        60,
        protect_sink_tokens={"vatp": 20}.get(name, 0),
        ranking=lambda: ReferenceRow(name, 72),
    )
    settings = dict(kv_budget=160, kv_policy=name, max_running_requests=1)
    with harness.engine(folder, probe=True, **settings) as engine:
        for _ in range(2):  # whichever rows there are
            engine.generate(input_ids=before, sampling_params=greedy(150))
        got = engine.generate(input_ids=[ids, ids], sampling_params=[greedy(60, kv_budget=72)] * 2)
    assert harness.outputs(got) == [wanted, wanted]


def test_every_policy_is_tested_here():
    remembering = {"longflow-peak", "longflow-novel", "vatp", "h2o", "h2o-last", "keydiff"}
    remembering |= {"snapkv-decode", "rkv", "rpc"}
    assert set(policy_names()) == remembering | set(longflow_oracle.POLICIES)
