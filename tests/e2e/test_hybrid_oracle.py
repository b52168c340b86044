# SPDX-License-Identifier: Apache-2.0
"""Checks of the oracle for models with recurrent layers, against Hugging Face's own numbers."""

from __future__ import annotations

import ast
import sys

import pytest
import torch

import hybrid_oracle as oracle
import longflow_oracle
from harness import build_tiny_model, prompt
from hybrid_models import FULL_LAYERS, KINDS, build_hybrid_model, make_hybrid
from oracle_replay import replay_budget
from reference_rankings import rankings_of
from token_oracle import assert_same_but_for_ties, expected, load

pytestmark = pytest.mark.usefixtures("one_thread")


def hf_greedy(model, ids, new_tokens):
    tokens = torch.tensor([ids])
    made = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=new_tokens,
        pad_token_id=0,
    )
    return made[0, len(ids) :].tolist()


def test_oracle_imports_nothing_of_the_package():
    with open(oracle.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            roots.add(node.module.split(".")[0])
    assert roots - set(sys.stdlib_module_names) == {"torch", "transformers", "longflow_oracle"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_that_is_never_reached_is_hf_generate(kind):
    model = make_hybrid(kind)
    ids = prompt(57, seed=1)
    wanted = hf_greedy(model, ids, 40)
    assert len(set(wanted)) > 10  # a constant output would prove little
    for budget in (None, 57 + 39):
        got = oracle.generate(model, ids, budget, 40)
        assert got.output_ids == wanted
        assert got.kv_lens == [57 + i for i in range(1, 40)]
        assert len(got.keep) == len(FULL_LAYERS[kind]) and not any(got.keep)
    assert set(got.victims[-1]) != {-1}  # full at the last step
    assert oracle.generate(model, ids, 57 + 38, 40).victims[-2] != [-1] * len(got.keep)
    # Hugging Face attends by itself again, and the run has left nothing behind.
    assert hf_greedy(model, ids, 40) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_the_layers_with_keys_and_values(kind):
    model = make_hybrid(kind)
    got = oracle.generate(model, prompt(9, seed=2), None, 2)
    attends = [int(m.layer_idx) for m in model.modules() if hasattr(m, "v_proj")]
    assert tuple(attends) == FULL_LAYERS[kind]
    count = model.config.num_hidden_layers
    without = set(range(count)) - set(attends) if kind != "falcon_h1" else set(range(count))
    # Layers of experts alone have neither.
    assert set(got.states) <= without and got.states


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_is_the_same_model(kind, tmp_path):
    ids = prompt(20, seed=3)
    wanted = oracle.generate(make_hybrid(kind), ids, 24, 20, policy="tova")
    got = oracle.generate(load(build_hybrid_model(kind, tmp_path)), ids, 24, 20, policy="tova")
    assert got.output_ids == wanted.output_ids and got.victims == wanted.victims


@pytest.mark.parametrize("kind", KINDS)
def test_states_do_not_depend_on_the_budget(kind):
    """Fed the same tokens: until the first layer that forgets, the same to the last bit; the same
    size everywhere."""
    model = make_hybrid(kind)
    ids, fed = prompt(80, seed=4), prompt(40, seed=5)
    full = oracle.generate(model, ids, None, 41, forced_ids=fed)
    bounded = oracle.generate(model, ids, 48, 41, forced_ids=fed)
    assert full.output_ids != bounded.output_ids
    first = FULL_LAYERS[kind][0]
    assert list(full.states) == list(bounded.states)
    before = [index for index in full.states if index <= first]
    assert before
    for index in full.states:
        for a, b in zip(full.states[index], bounded.states[index], strict=True):
            assert a.shape == b.shape
            assert torch.equal(a, b) == (index in before)
    # The cut comes after prefill: what a prompt leaves behind is that of full KV.
    one = [oracle.generate(model, ids, budget, 1).states for budget in (None, 48)]
    for index in one[0]:
        for a, b in zip(one[0][index], one[1][index], strict=True):
            assert torch.equal(a, b)


CASES = [  # budget, prompt length, sinks, recent
    (48, 70, 2, 3),
    (48, 47, 0, 0),  # fits exactly: no cut, full at the first step
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget,prompt_len,sinks,recent", CASES)
def test_replayed_through_hf(kind, budget, prompt_len, sinks, recent):
    """Nothing is dropped there: what was evicted is masked out, one mask a layer that attends."""
    model = make_hybrid(kind, seed=budget)
    ids = prompt(prompt_len, seed=prompt_len)
    protect = dict(protect_sink_tokens=sinks, protect_recent_tokens=recent)
    got = oracle.generate(model, ids, budget, 25, **protect)
    model.set_attn_implementation("eager")
    checked = replay_budget(model, ids, budget, got, sinks=sinks, recent=recent, cuts=got.keep)
    full_steps = sum(length == budget for length in got.kv_lens)
    assert checked == len(FULL_LAYERS[kind]) * full_steps > 0
    assert any(len(set(step)) > 1 for step in got.victims)  # layers choose for themselves


@pytest.mark.parametrize("policy", ["tova", "random", "streaming"])
@pytest.mark.parametrize("kind", ["qwen3_next", "falcon_h1"])
def test_other_policies_replayed_through_hf(kind, policy):
    model = make_hybrid(kind, seed=7)
    ids = prompt(70, seed=7)
    protect = dict(protect_sink_tokens=2, protect_recent_tokens=5)
    if policy == "streaming":
        protect = dict(protect_sink_tokens=4)
    got = oracle.generate(model, ids, 48, 40, policy=policy, **protect)
    as_published = oracle.generate(model, ids, 48, 40, **protect)
    assert got.victims != as_published.victims
    model.set_attn_implementation("eager")
    how = dict(sinks=protect["protect_sink_tokens"], policy=policy, cuts=got.keep)
    recent = protect.get("protect_recent_tokens", 0)
    assert replay_budget(model, ids, 48, got, recent=recent, **how) > 40


def test_replay_notices_a_wrong_oracle():
    model = make_hybrid("qwen3_5", seed=48)
    ids = prompt(40, seed=9)
    good = oracle.generate(model, ids, 48, 40)
    ring = oracle.generate(model, ids, 48, 40, policy="streaming")
    full = oracle.generate(model, ids, None, 40)
    mixed = longflow_oracle.OracleResult(full.output_ids, full.margins, good.kv_lens, good.victims)

    def fresh():
        model = make_hybrid("qwen3_5", seed=48)
        model.set_attn_implementation("eager")
        return model

    assert replay_budget(fresh(), ids, 48, good) > 0
    for wrong in (ring, mixed):
        with pytest.raises(AssertionError):
            replay_budget(fresh(), ids, 48, wrong)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_dense_models_as_the_other_oracle_decodes_them(kind, tmp_path):
    """Two layer loops, one of them Hugging Face's: the same tokens, victims and cuts."""
    model = load(build_tiny_model(kind, tmp_path))
    cases = [(20, 48), (47, 48), (90, 64), (90, 48)]
    for length, budget in cases:
        ids = prompt(length, seed=length)
        for policy in longflow_oracle.POLICIES:
            how = dict(policy=policy, protect_sink_tokens=3)
            got = oracle.generate(model, ids, budget, 60, **how)
            want = longflow_oracle.generate(model, ids, budget, 60, **how)
            assert got.output_ids == want.output_ids and got.victims == want.victims
            assert got.kv_lens == want.kv_lens


@pytest.mark.parametrize("name", ["h2o", "keydiff", "snapkv-decode", "longflow-novel"])
def test_rankings_that_remember_as_the_other_oracle_runs_them(name, tmp_path):
    model = load(build_tiny_model("llama", tmp_path))
    for length in (25, 100):
        ids = prompt(length, seed=length)
        sinks = 4 if name == "longflow-novel" else 0
        made = [
            run(
                model, ids, 72, 80, protect_sink_tokens=sinks,
                ranking=rankings_of(name, 72, len(model.model.layers)),
            )
            for run in (oracle.generate, longflow_oracle.generate)
        ]  # fmt: skip
        assert made[0].output_ids == made[1].output_ids


def test_forced_victims_and_cuts_are_judged():
    model = make_hybrid("qwen3_next")
    ids = prompt(80, seed=11)
    own = oracle.generate(model, ids, 48, 30)
    forced = dict(enumerate(own.victims))
    same = oracle.generate(
        model, ids, 48, 30, forced_ids=own.output_ids, forced_victims=forced, forced_keep=own.keep
    )
    assert same.output_ids == own.output_ids
    assert set(same.regrets) == {0.0} and same.keep_agreement == [1.0] * len(own.keep)
    other = {0: [(slot + 1) % 48 for slot in own.victims[0]]}
    worse = oracle.generate(model, ids, 48, 30, forced_victims=other)
    assert len(worse.regrets) == len(own.keep) and min(worse.regrets) > 0
    assert worse.victims[0] == other[0]
    earlier = [[0, *kept[1:]] for kept in own.keep]
    assert earlier != own.keep
    moved = oracle.generate(model, ids, 48, 30, forced_keep=earlier)
    assert moved.keep == earlier and min(moved.keep_agreement) < 1.0


def test_what_the_token_oracle_expects_of_a_hybrid():
    model = make_hybrid("lfm2")
    ids = prompt(60, seed=12)
    assert expected(model, ids, 48, 30) == oracle.generate(model, ids, 48, 30).output_ids


def test_the_judge_of_ties_notices_what_is_none():
    """A slot that another was more useless than, and a token that follows from no slot."""
    model = make_hybrid("lfm2")
    ids = prompt(60, seed=13)
    own = oracle.generate(model, ids, 48, 30)

    def judge(made, output_ids):
        trace = {
            "a": {"victims": {str(n): v for n, v in enumerate(made.victims)}, "keep": own.keep}
        }
        item = {"output_ids": output_ids, "meta_info": {"id": "a"}}
        assert_same_but_for_ties(model, ids, 48, item, own.output_ids, trace)

    judge(own, own.output_ids)
    other = {n: [(slot + 1) % 48 for slot in own.victims[n]] for n in range(8)}
    worse = oracle.generate(model, ids, 48, 30, forced_victims=other)
    assert worse.output_ids != own.output_ids
    with pytest.raises(AssertionError):
        judge(worse, worse.output_ids)
    with pytest.raises(AssertionError):
        judge(own, [*own.output_ids[:-1], (own.output_ids[-1] + 1) % 512])
