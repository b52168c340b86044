# SPDX-License-Identifier: Apache-2.0
"""Checks of the oracle itself, against Hugging Face and against still more naive code."""

import ast
import math
import os
import random
import sys

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

import longflow_oracle as oracle
from oracle_replay import naive_pooled_votes, naive_scores, replay_budget

pytestmark = pytest.mark.usefixtures("one_thread")
BUDGETS = (48, 64, 97)
VOCAB = 128
CONFIGS = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 32}),
    "mistral": (MistralConfig, {"sliding_window": None}),
}
TEXT = (
    "The lighthouse keeper wrote a letter every evening, although no ship had carried mail for "
    "eleven years. She described the weather, the birds that rested on the railing, and the "
    "slow work of polishing the great lens. One morning a small boat came out of the fog, and "
    "the man who rowed it asked whether she was the one who had written all those letters. "
    "Explain in three sentences what happened next, and why the letters mattered so much to the "
    "people of the town."
)


def tiny_model(family, seed=0, attn="sdpa"):
    cls, extra = CONFIGS[family]
    config = cls(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **extra,
    )
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=attn, dtype=torch.float32
    ).eval()
    # Weights large enough for peaked attention; biases and norm weights that are not neutral.
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=gen)
            if name.endswith("bias"):
                p.copy_(0.3 * noise)
            elif "norm" in name:
                p.copy_(1.0 + 0.2 * noise)
            elif "embed" in name:
                p.copy_(noise)
            else:
                p.copy_(noise * 1.5 / math.sqrt(p.shape[-1]))
    return model


def random_prompt(n, seed=0):
    rng = random.Random(seed)
    return [rng.randrange(VOCAB) for _ in range(n)]


def hf_greedy(model, prompt, n, **kwargs):
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=n,
        pad_token_id=0,
        **kwargs,
    )
    return out[0, len(prompt) :].tolist()


@pytest.fixture(scope="module")
def real():
    folder = os.environ.get("LONGFLOW_TEST_MODEL")
    if not folder:
        pytest.skip("LONGFLOW_TEST_MODEL is not set")
    if not os.path.isdir(folder):
        pytest.skip(f"LONGFLOW_TEST_MODEL={folder} is not a folder")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    eos = model.generation_config.eos_token_id
    return model, tokenizer, (eos if isinstance(eos, list) else [eos])


def chat_prompt(tokenizer):
    text = f"<|im_start|>user\n{TEXT}<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return ids


# --- independence ----------------------------------------------------------------------------


def test_oracle_imports_nothing_of_the_package():
    with open(oracle.__file__, encoding="utf-8") as f:
        tree = ast.parse(f.read())
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            roots.add(node.module.split(".")[0])
    assert roots - set(sys.stdlib_module_names) == {"torch", "transformers"}


# --- pure helpers, against loops --------------------------------------------------------------


def test_removal_scores_by_hand():
    # 2 query heads share 1 kv head, 3 slots, 2 channels.
    alpha = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]])
    v = torch.tensor([[[1.0, -1.0], [4.0, 0.0], [-0.5, 0.5]]])
    expected = [(0.5 * 2 + 0.125 * 2) / 4, (0.25 * 4 + 0.125 * 4) / 4, (0.25 + 0.75) / 4]
    assert oracle.removal_scores(alpha, v).tolist() == pytest.approx(expected)
    scores = oracle.removal_scores(alpha, v).tolist()
    assert oracle.choose_victim(scores, [0, 1, 2]) == 2
    assert alpha.sum(0).argmin().item() == 1  # attention mass alone would have taken slot 1


@pytest.mark.parametrize("heads,kv_heads", [(4, 2), (9, 3), (3, 3), (6, 1)])
def test_removal_scores_against_triple_loop(heads, kv_heads):
    torch.manual_seed(heads)
    alpha = torch.softmax(3 * torch.randn(heads, 17), dim=-1)
    v = torch.randn(kv_heads, 17, 8)
    got = oracle.removal_scores(alpha, v)
    want = naive_scores(alpha.tolist(), v.tolist())
    assert got.tolist() == pytest.approx(want, rel=1e-5)
    assert oracle.choose_victim(got.tolist(), list(range(17))) == want.index(min(want))


def test_choose_victim_protection_and_ties():
    scores = [3.0, 1.0, 2.0, 1.0, 0.5]
    positions = [0, 1, 9, 3, 8]  # rows 2 and 4 hold the newest tokens
    assert oracle.choose_victim(scores, positions) == 4
    assert oracle.choose_victim(scores, positions, recent=1) == 4  # position 9 only
    assert oracle.choose_victim(scores, positions, recent=2) == 1  # tie of 1 and 3
    assert oracle.choose_victim(scores, positions, sinks=2, recent=2) == 3  # the only one left
    assert oracle.choose_victim([1.0] * 5, positions, sinks=3) == 3
    with pytest.raises(ValueError, match="protected"):
        oracle.choose_victim(scores, positions, sinks=4, recent=2)


def test_attention_alone_does_not_save_a_slot():
    """A slot with most of the attention but a tiny value is the victim."""
    alpha = torch.tensor([[0.9, 0.1]])
    v = torch.tensor([[[0.001, -0.001], [5.0, 5.0]]])
    assert oracle.choose_victim(oracle.removal_scores(alpha, v).tolist(), [0, 1]) == 0


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("sinks", [0, 4])
def test_snapkv_keep_against_loops(budget, sinks):
    torch.manual_seed(budget + sinks)
    heads, kv_heads, dim, prompt_len, window = 4, 2, 8, 130, 32
    q = 2 * torch.randn(heads, prompt_len, dim)
    k = 2 * torch.randn(kv_heads, prompt_len, dim)
    kept = oracle.snapkv_keep(q[:, -window:], k, budget - 1, sinks=sinks)
    assert len(kept) == budget - 1
    assert kept == sorted(set(kept))
    assert kept[-window:] == list(range(prompt_len - window, prompt_len))
    assert kept[:sinks] == list(range(sinks))

    n = prompt_len - window
    ql, kl = q.tolist(), k.tolist()
    probs = []
    for h in range(heads):
        probs.append([])
        for w in range(prompt_len - window, prompt_len):
            e = [
                math.exp(sum(a * b for a, b in zip(ql[h][w], kl[h // 2][i])) / math.sqrt(dim))
                for i in range(n)
            ]
            total = sum(e)
            probs[-1].append([x / total for x in e])
    pooled = naive_pooled_votes(probs)
    best = sorted(range(sinks, n), key=lambda i: -pooled[i])[: budget - 1 - window - sinks]
    assert kept == sorted(list(range(sinks)) + best) + list(range(n, prompt_len))


def test_snapkv_keep_refuses_what_does_not_fit():
    q, k = torch.zeros(2, 32, 4), torch.zeros(1, 60, 4)
    with pytest.raises(ValueError, match="cannot keep"):
        oracle.snapkv_keep(q, k, 31)
    with pytest.raises(ValueError, match="cannot keep"):
        oracle.snapkv_keep(q, k, 40, sinks=9)


def test_streaming_keep():
    assert oracle.streaming_keep(10, 5, 2) == [0, 1, 7, 8, 9]
    assert oracle.streaming_keep(10, 5) == [5, 6, 7, 8, 9]


# --- full cache: Hugging Face's own greedy decoding ------------------------------------------


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("budget", [None, 512])
def test_tiny_equals_hf_generate(family, budget):
    model = tiny_model(family)
    prompt = random_prompt(57, seed=1)
    got = oracle.generate(model, prompt, budget, 40)
    assert got.output_ids == hf_greedy(model, prompt, 40)
    assert got.kv_lens == [len(prompt) + i for i in range(1, 40)]
    assert len(got.margins) == 40 and min(got.margins) > 1e-4
    assert len(set(got.output_ids)) > 5  # a constant output would prove little
    assert (got.victims is None) == (budget is None)
    if budget is not None:
        assert got.victims == [[-1, -1]] * 39


def test_real_model_equals_hf_generate(real):
    model, tokenizer, eos = real
    prompt = chat_prompt(tokenizer)
    n = 40
    want = hf_greedy(model, prompt, n)
    assert len(set(want)) > 5
    for budget in (None, 1024):
        got = oracle.generate(model, prompt, budget, n, eos_ids=eos)
        assert got.output_ids == want


def test_margins_are_those_of_hf_logits():
    model = tiny_model("qwen3")
    prompt = random_prompt(20, seed=2)
    got = oracle.generate(model, prompt, None, 12)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + got.output_ids])).logits[0, len(prompt) - 1 : -1]
    top = logits.topk(2).values
    assert got.margins == pytest.approx((top[:, 0] - top[:, 1]).tolist(), abs=1e-4)


def test_forced_ids_and_eos():
    model = tiny_model("llama")
    prompt = random_prompt(30, seed=3)
    free = oracle.generate(model, prompt, None, 20)
    same = oracle.generate(model, prompt, None, 20, forced_ids=free.output_ids)
    assert same == free
    forced = random_prompt(20, seed=4)
    got = oracle.generate(model, prompt, None, 20, forced_ids=forced)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + forced])).logits[0, len(prompt) - 1 : -1]
    assert got.output_ids == logits.argmax(-1).tolist()
    assert got.output_ids != free.output_ids
    with pytest.raises(ValueError, match="forced"):
        oracle.generate(model, prompt, None, 20, forced_ids=forced[:18])

    stop = free.output_ids[7]
    first = free.output_ids.index(stop)
    cut = oracle.generate(model, prompt, None, 20, eos_ids=[stop])
    assert cut.output_ids == free.output_ids[: first + 1]
    assert len(cut.kv_lens) == first


# --- a budget: replay through Hugging Face's forward with one mask a layer --------------------


def record_cuts(monkeypatch):
    cuts = []
    original = oracle.snapkv_keep

    def recording(*args, **kwargs):
        cuts.append(original(*args, **kwargs))
        return cuts[-1]

    monkeypatch.setattr(oracle, "snapkv_keep", recording)
    return cuts


def test_split_mix_gives_the_published_numbers():
    """SplitMix64 from state 0: each output is that of the state advanced by the golden gamma."""
    gamma = 0x9E3779B97F4A7C15
    got = [oracle.split_mix(n * gamma % 2**64) for n in range(3)]
    assert got == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_random_victims_skip_what_is_protected():
    positions = [0, 1, 7, 8, 2, 9]  # row indices 2, 3 and 5 hold the newest three
    for step in range(200):
        assert oracle.random_victim(step, positions, sinks=1, recent=3) in (1, 4)
    assert {oracle.random_victim(step, positions) for step in range(200)} == set(range(6))


CASES = [  # family, budget, prompt length, sinks, recent
    ("llama", 48, 80, 0, 0),
    ("llama", 64, 150, 4, 8),
    ("qwen2", 97, 130, 0, 16),
    ("qwen2", 48, 30, 2, 3),
    ("qwen3", 48, 90, 0, 0),
    ("qwen3", 64, 63, 0, 5),  # fits exactly: no cut, full at the first step
    ("mistral", 64, 64, 1, 0),  # one token too many
    ("mistral", 48, 12, 0, 0),
]


@pytest.mark.parametrize("family,budget,prompt_len,sinks,recent", CASES)
def test_longflow_replayed_through_hf(monkeypatch, family, budget, prompt_len, sinks, recent):
    cuts = record_cuts(monkeypatch)
    model = tiny_model(family, seed=budget, attn="eager")
    prompt = random_prompt(prompt_len, seed=prompt_len)
    n = 50
    got = oracle.generate(
        model, prompt, budget, n, protect_sink_tokens=sinks, protect_recent_tokens=recent
    )
    resident = min(prompt_len, budget - 1)
    assert got.kv_lens == [min(resident + i, budget) for i in range(1, n)]
    assert len(cuts) == (2 if prompt_len > budget - 1 else 0)
    checked = replay_budget(model, prompt, budget, got, sinks=sinks, recent=recent, cuts=cuts)
    assert checked == 2 * sum(length == budget for length in got.kv_lens) > 0
    chosen = [v for step in got.victims for v in step if v >= 0]
    assert len(set(chosen)) > 3
    assert any(a != b for a, b in got.victims)  # layers choose for themselves


@pytest.mark.parametrize("policy", ["tova", "random"])
@pytest.mark.parametrize("prompt_len,sinks,recent", [(30, 0, 0), (90, 2, 5)])
def test_other_policies_replayed_through_hf(monkeypatch, policy, prompt_len, sinks, recent):
    cuts = record_cuts(monkeypatch)
    model = tiny_model("llama", seed=3, attn="eager")
    prompt = random_prompt(prompt_len, seed=prompt_len)
    protect = dict(protect_sink_tokens=sinks, protect_recent_tokens=recent)
    got = oracle.generate(model, prompt, 48, 50, policy=policy, **protect)
    as_published = oracle.generate(model, prompt, 48, 50, **protect)
    assert got.victims != as_published.victims
    how = dict(sinks=sinks, recent=recent, policy=policy, cuts=cuts)
    assert replay_budget(model, prompt, 48, got, **how) > 40


@pytest.mark.parametrize(
    "family,budget,prompt_len,sinks",
    [("llama", 48, 20, 4), ("qwen3", 48, 90, 4), ("qwen2", 64, 70, 0), ("mistral", 97, 96, 2)],
)
def test_streaming_replayed_through_hf(family, budget, prompt_len, sinks):
    model = tiny_model(family, seed=budget, attn="eager")
    prompt = random_prompt(prompt_len, seed=prompt_len)
    n = 80 if budget == 48 else 30
    got = oracle.generate(model, prompt, budget, n, protect_sink_tokens=sinks, policy="streaming")
    assert replay_budget(model, prompt, budget, got, sinks=sinks, policy="streaming") > 0
    ring = [step[0] for step in got.victims if step[0] >= 0]
    assert ring == [sinks + i % (budget - sinks) for i in range(len(ring))]


def test_replay_notices_a_wrong_oracle():
    """The replay must reject runs that break the rule, or the tests above prove nothing."""
    model = tiny_model("llama", seed=48, attn="eager")
    prompt = random_prompt(40, seed=9)
    good = oracle.generate(model, prompt, 48, 40)
    ring = oracle.generate(model, prompt, 48, 40, policy="streaming")
    full = oracle.generate(model, prompt, None, 40)
    mixed = oracle.OracleResult(full.output_ids, full.margins, good.kv_lens, good.victims)

    def fresh():
        return tiny_model("llama", seed=48, attn="eager")

    assert replay_budget(fresh(), prompt, 48, good) > 0
    for wrong in (ring, mixed):
        with pytest.raises(AssertionError):
            replay_budget(fresh(), prompt, 48, wrong)
    with pytest.raises(AssertionError):
        replay_budget(fresh(), prompt, 48, good, sinks=16)


def test_unprotected_newest_token_can_be_the_victim():
    """The newest token competes like any other; protecting one token ends that."""
    hits = {0: 0, 1: 0}
    for recent in hits:
        for seed in range(3):
            model = tiny_model("llama", seed=seed)
            prompt = random_prompt(47, seed=seed)
            got = oracle.generate(
                model, prompt, 48, 60, policy="longflow", protect_recent_tokens=recent
            )
            slot = [47, 47]  # where the newest token of each layer sits
            for step in got.victims:
                hits[recent] += sum(v == s for v, s in zip(step, slot))
                slot = step
    assert hits[0] > 0
    assert hits[1] == 0


# --- the real model under a budget ------------------------------------------------------------


@pytest.mark.parametrize("budget", BUDGETS)
def test_real_model_stays_inside_the_budget(monkeypatch, real, budget):
    model, tokenizer, _ = real
    cuts = record_cuts(monkeypatch)
    prompt = chat_prompt(tokenizer)
    got = oracle.generate(model, prompt, budget, 12)
    layers = model.config.num_hidden_layers
    assert len(prompt) > budget
    assert got.kv_lens == [budget] * 11
    assert len(got.output_ids) == len(got.margins) == 12
    assert len(cuts) == layers
    for kept in cuts:
        assert len(kept) == budget - 1 and kept == sorted(set(kept))
        assert kept[-32:] == list(range(len(prompt) - 32, len(prompt)))
    assert len({tuple(kept) for kept in cuts}) > 1
    assert all(len(step) == layers and 0 <= min(step) <= max(step) < budget for step in got.victims)


def test_real_model_prefill_token_ignores_the_budget(real):
    model, tokenizer, _ = real
    prompt = chat_prompt(tokenizer)
    full = oracle.generate(model, prompt, None, 6)
    cut = oracle.generate(model, prompt, 48, 6)
    assert cut.output_ids[0] == full.output_ids[0]
    assert cut.margins[0] == pytest.approx(full.margins[0], abs=1e-4)
    assert cut.margins[1:] != pytest.approx(full.margins[1:], abs=1e-3)


# --- refusals ---------------------------------------------------------------------------------


def test_refusals():
    model = tiny_model("llama")
    prompt = random_prompt(60)
    for kwargs, match in [
        ({"budget": 32}, "window"),
        ({"budget": 48, "protect_sink_tokens": 16}, "window"),
        ({"budget": 48, "protect_sink_tokens": 8, "protect_recent_tokens": 40}, "protected"),
        ({"budget": 48, "protect_sink_tokens": 47, "policy": "streaming"}, "sinks"),
        ({"budget": 48, "policy": "lru"}, "policy"),
        ({"budget": 1}, "at least 2"),
    ]:
        with pytest.raises(ValueError, match=match):
            oracle.generate(model, prompt, max_new_tokens=4, **kwargs)
    with pytest.raises(ValueError, match="empty"):
        oracle.generate(model, [], None, 4)
    sliding = tiny_model("mistral")
    sliding.config.sliding_window = 50
    with pytest.raises(ValueError, match="sliding"):
        oracle.generate(sliding, prompt, None, 4)
