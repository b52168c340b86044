# SPDX-License-Identifier: Apache-2.0
"""The model that ships is the one that is described, and solves problems it has not seen."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sglang_longflow.reasoner import KINDS, MODEL_DIR, make_problems
from sglang_longflow.reasoner.vocabulary import END, TOKEN_IDS, encode

pytestmark = pytest.mark.slow  # transformers takes seconds to import


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()


def test_weights_and_shape(model):
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= 20e6
    shape = model.config
    assert shape.architectures == ["Qwen3ForCausalLM"] and shape.head_dim == 64
    assert shape.num_attention_heads > shape.num_key_value_heads
    report = json.loads((MODEL_DIR / "training.json").read_text())
    assert report["log"][-1]["step"] == report["settings"]["steps"]


def test_its_tokenizer_is_the_vocabulary():
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    problem = next(make_problems(seed=4_000_001, count=1, longest=400))
    text = f"{problem.prompt} {problem.chain}"
    assert tokenizer(text)["input_ids"] == [*encode(problem.prompt), *encode(problem.chain)[1:]]


@torch.no_grad()
def test_it_solves_problems_it_has_not_seen(model):
    """Every token of the chain is its first choice, so greedy decoding writes the chain."""
    problems = list(make_problems(seed=4_000_002, count=18, longest=1800))
    solved = dict.fromkeys(KINDS, 0)
    for problem in problems:
        prompt, chain = encode(problem.prompt), encode(problem.chain)[1:]
        ids = torch.tensor([[*prompt, *chain]])
        choice = model(input_ids=ids).logits[0, len(prompt) - 1 :].argmax(dim=-1)
        solved[problem.kind] += choice.tolist() == [*chain, TOKEN_IDS[END]]
    assert solved["machine"] == solved["affine"] == 6 and solved["search"] >= 4, solved
