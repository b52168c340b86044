# SPDX-License-Identifier: Apache-2.0
"""Models with recurrent layers: greedy tokens equal an independent plain-PyTorch decode.

Of every kind the layers with keys and values keep a budget, and the others their one state.
"""

from __future__ import annotations

from functools import partial

import pytest

import harness
import kind_cases
import longflow_oracle
from churn import churn
from harness import greedy, prompt
from hybrid_models import FLOAT32_STATES, FULL_LAYERS, KINDS
from reference_rankings import REMEMBERING, rankings_of
from sglang_longflow.policies import policy_names
from sglang_longflow.settings.flags import DEFAULT_POLICY
from token_oracle import assert_same_but_for_ties, expected, load

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]
variant = partial(pytest.param, marks=pytest.mark.variant)
BUDGETS = (48, 64, 97)
COMMON = prompt(200, 1)
FIRST, SECOND = COMMON + prompt(40, 2), COMMON + prompt(55, 3)


def engine(folder, **settings):
    """A probed engine with states in float32, and few of them: a pool of states is zeroed."""
    env = {**FLOAT32_STATES, **settings.pop("env", {})}
    return harness.engine(folder, probe=True, env=env, **{"max_mamba_cache_size": 80, **settings})


@pytest.mark.variant
@pytest.mark.parametrize("kind", KINDS)
def test_without_a_budget(tiny_models, kind):
    """What SGLang computes by itself: nothing of a budget explains a difference here."""
    folder = tiny_models(kind)
    model = load(folder)
    cases = [prompt(length, seed) for seed, length in enumerate((9, 70, 150))]
    with engine(folder) as running:
        got = running.generate(input_ids=cases, sampling_params=[greedy(60)] * 3)
    assert harness.outputs(got) == [expected(model, ids, None, 60) for ids in cases]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(tiny_models, kind):
    """Budgets under, at and over the length, prompts that are cut and that are not, full KV; all in
    one batch, then alone, on slots and states that others left. Some pass 256 tokens, where SGLang
    keeps a state for the tree."""
    folder = tiny_models(kind)
    model = load(folder)
    wanted = kind_cases.wanted_tokens(model)
    env = {"LONGFLOW_PROBE_TRACE": "1"}
    with engine(folder, env=env, **kind_cases.SETTINGS) as running:
        report = kind_cases.assert_tokens(running, model, wanted)
    for row in report["trace"].values():
        for slots in row["victims"].values():
            assert len(slots) == len(FULL_LAYERS[kind])
    assert report["radix"]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("qwen3_next", dict(chunked_prefill_size=64)),
        variant("nemotron_h", dict(disable_radix_cache=True, chunked_prefill_size=64)),
        variant("falcon_h1", dict(disable_radix_cache=True, disable_overlap_schedule=True)),
        variant(
            "qwen3_5", dict(mamba_radix_cache_strategy="no_buffer", disable_overlap_schedule=True)
        ),
    ],
    ids=["chunks", "no tree, chunks", "no tree, no overlap", "no buffer"],
)
def test_scheduling_does_not_change_tokens(tiny_models, kind, settings):
    """Prompts in chunks, without the tree, without overlap: the same tokens, twice."""
    folder = tiny_models(kind)
    model = load(folder)
    cases = [
        (prompt(length, 50 + length), budget) for length in (30, 150, 333) for budget in (48, 97)
    ]
    wanted = [expected(model, ids, budget, 80) for ids, budget in cases]
    with engine(
        folder,
        env={"LONGFLOW_PROBE_TRACE": "1"},
        kv_budget=64,
        kv_budget_max=97,
        **settings,
    ) as running:
        for turn in range(2):  # the second time on slots and states that hold the first's leftovers
            got = running.generate(
                input_ids=[ids for ids, _ in cases],
                sampling_params=[greedy(80, kv_budget=budget) for _, budget in cases],
                rid=[f"{turn}-{i}" for i in range(len(cases))],
            )
            report = running.probe_report()
            for (ids, budget), item, tokens in zip(cases, got, wanted, strict=True):
                assert_same_but_for_ties(model, ids, budget, item, tokens, report["trace"])
        assert report["overlap"] is not bool(settings.get("disable_overlap_schedule"))
        assert report["radix"] is not bool(settings.get("disable_radix_cache"))


@pytest.mark.variant
@pytest.mark.parametrize("kind", ["qwen3_next", "nemotron_h"])
def test_policies_without_memory(tiny_models, kind):
    """protect_sink_tokens, protect_recent_tokens and the oracle's own policies follow it."""
    folder = tiny_models(kind)
    model = load(folder)
    protect = dict(protect_sink_tokens=4, protect_recent_tokens=7)
    cases = [
        (prompt(length, 80 + length), budget, policy)
        for length in (10, 130)
        for budget in (48, 97)
        for policy in longflow_oracle.POLICIES
    ]
    wanted = [expected(model, ids, b, 120, policy=p, **protect) for ids, b, p in cases]
    settings = dict(kv_budget=64, kv_budget_max=97)
    settings |= dict(kv_protect_sink_tokens=4, kv_protect_recent_tokens=7)
    with engine(folder, env={"LONGFLOW_PROBE_TRACE": "1"}, **settings) as running:
        got = running.generate(
            input_ids=[ids for ids, _, _ in cases],
            sampling_params=[greedy(120, kv_budget=b, kv_policy=p) for _, b, p in cases],
            rid=[f"policy-{i}" for i in range(len(cases))],
        )
        trace = running.probe_report()["trace"]
        for (ids, budget, policy), item, tokens in zip(cases, got, wanted, strict=True):
            how = dict(policy=policy, **protect)
            assert_same_but_for_ties(model, ids, budget, item, tokens, trace, **how)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(names, marks=() if DEFAULT_POLICY in names else pytest.mark.variant)
        for names in REMEMBERING
    ],
    ids=lambda names: names[0],
)
def test_policies_that_remember(tiny_models, names):
    """Prompts that are cut and that are not, twice on the same slots, other policies beside."""
    folder = tiny_models("lfm2")
    model = load(folder)
    cases = [(prompt(length, 90 + length), name) for name in names for length in (25, 120)]
    wanted = [
        expected(
            model,
            ids,
            72,
            80,
            protect_sink_tokens={"vatp": 20, "longflow-novel": 4}.get(name, 0),
            ranking=rankings_of(name, 72, len(FULL_LAYERS["lfm2"])),
        )
        for ids, name in cases
    ]
    with engine(folder, kv_budget=72, kv_policy=names[0]) as running:
        for _ in range(2):
            harness.cold(running)
            got = running.generate(
                input_ids=[ids for ids, _ in cases],
                sampling_params=[greedy(80, kv_budget=72, kv_policy=name) for _, name in cases],
            )
            assert harness.outputs(got) == wanted


def test_every_policy_is_tested_here():
    remembering = {name for names in REMEMBERING for name in names}
    assert set(policy_names()) == remembering | set(longflow_oracle.POLICIES)


@pytest.mark.parametrize("budget", [96, 300])
@pytest.mark.parametrize("kind", ["qwen3_next", variant("granitemoehybrid")])
def test_a_shared_prefix_is_hit_and_not_written(tiny_models, kind, budget):
    """Budget 96 cuts the prompts; budget 300 shares their slots until the rows overwrite."""
    folder = tiny_models(kind)
    model = load(folder)
    wanted = [expected(model, ids, budget, 120) for ids in (FIRST, SECOND)]
    env = {"LONGFLOW_PROBE_TRACE": "1"}
    with engine(folder, env=env, kv_budget=96, kv_budget_max=400) as running:

        def run(*prompts, rid):
            return running.generate(
                input_ids=list(prompts),
                sampling_params=[greedy(120, kv_budget=budget)] * len(prompts),
                rid=[f"{rid}-{i}" for i in range(len(prompts))],
            )

        cold = run(FIRST, rid="cold")
        assert cold[0]["meta_info"]["cached_tokens"] == 0
        # Where a state was kept, at the end of a prompt or of a chunk, both can be taken up again.
        again = run(FIRST + SECOND[200:], FIRST, rid="warm")
        assert again[0]["meta_info"]["cached_tokens"] > 0
        both = run(FIRST, SECOND, FIRST, rid="both")
        report = running.probe_report()  # every step compared the bytes of the tree's slots
        trace = report["trace"]
        seen = [(cold[0], 0), (again[1], 0), *zip(both, (0, 1, 0), strict=True)]
        for item, which in seen:
            ids = (FIRST, SECOND)[which]
            assert_same_but_for_ties(model, ids, budget, item, wanted[which], trace)
        longer = expected(model, FIRST + SECOND[200:], budget, 120)
        assert_same_but_for_ties(model, FIRST + SECOND[200:], budget, again[0], longer, trace)
        assert report["tree_slots_checked"] > 10_000
        assert report["idle_available"] + report["idle_evictable"] == report["total"]


@pytest.mark.parametrize("kind", ["qwen3_5_moe", variant("nemotron_h")])
def test_nothing_leaks_and_no_budget_is_exceeded(tiny_models, kind):
    """Mixed requests with aborts; SGLang's strict checks and ours after every step."""
    with engine(
        tiny_models(kind),
        kv_budget=96,
        kv_budget_allow_full=True,
        stream_interval=4,
        max_total_tokens=2500,
        chunked_prefill_size=128,
    ) as running:
        done = running.loop.run_until_complete(churn(running, 120, seed=5))
        assert sum(done.values()) == 120
        assert done["aborted"] >= 3 and done["finished"] >= 50
        report = running.probe_report()
        assert report["idle_available"] + report["idle_evictable"] == report["total"]
        assert report["idle_protected"] == 0
        assert report["idle_states"] == report["total_states"] > 0
        harness.cold(running)
        report = running.probe_report()
        assert report["idle_available"] == report["total"]
        assert report["free_states"] == report["total_states"]
