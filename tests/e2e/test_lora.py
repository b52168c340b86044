# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters with budgets: one batch, several adapters, each request with its own budget.

SGLang 0.5.17 pins memory for adapters without asking whether there is a GPU, so without one it
cannot start with ``--enable-lora``. On the CPU the scheduler's process therefore runs with
`unpinned`; everything else is SGLang's own.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import harness
import longflow_oracle

LAYERS = harness.TINY["num_hidden_layers"]
RANK = 4
ALPHA = 16
IDS = harness.prompt(30, 7)
NEW_TOKENS = 90
#: (adapter, budget) of each request.
WANTED = [("a", 48), ("b", 48), (None, 48), ("a", 64), ("b", 0)]


def unpinned() -> None:
    """Without a GPU there is nothing to pin memory for: leave tensors as they are."""
    torch.Tensor.pin_memory = lambda self, *args, **kwargs: self

    def ignoring(function):
        def call(*args, pin_memory=False, **kwargs):
            return function(*args, **kwargs)

        return call

    for name in ("tensor", "zeros", "empty"):
        setattr(torch, name, ignoring(getattr(torch, name)))


def run_scheduler_process(*args, **kwargs):
    """SGLang's entry point of a scheduler process, where nothing is pinned."""
    from sglang.srt.managers import scheduler

    unpinned()
    scheduler.run_scheduler_process(*args, **kwargs)


def shapes() -> dict[str, tuple[int, int]]:
    """(output, input) of the projections that adapters change."""
    hidden, head = harness.TINY["hidden_size"], harness.TINY["head_dim"]
    query = harness.TINY["num_attention_heads"] * head
    kv = harness.TINY["num_key_value_heads"] * head
    return {"q_proj": (query, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden)}


def build_adapter(folder: Path, seed: int) -> Path:
    """Random weights in PEFT's files."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(LAYERS):
        for name, (out, into) in shapes().items():
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{key}.lora_A.weight"] = torch.randn(RANK, into, generator=generator) * 0.1
            weights[f"{key}.lora_B.weight"] = torch.randn(out, RANK, generator=generator) * 0.1
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    config = dict(peft_type="LORA", task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, bias="none")
    config |= dict(target_modules=list(shapes()), base_model_name_or_path="base", lora_dropout=0.0)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def merged(model: Path, adapter: Path | None):
    """The model with the adapter's product added to its weights, in plain PyTorch."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    found = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    weights = load_file(adapter / "adapter_model.safetensors") if adapter else {}
    parameters = dict(found.named_parameters())
    with torch.no_grad():
        for key, a in weights.items():
            if key.endswith("lora_A.weight"):
                name = key.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
                b = weights[key.replace("lora_A", "lora_B")]
                parameters[name] += ALPHA / RANK * (b @ a)
    return found


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return {name: build_adapter(folder / name, seed) for seed, name in enumerate("ab")}


def engine(model: Path, adapters: dict[str, Path], **more):
    return harness.engine(
        model,
        kv_budget=96,
        kv_budget_allow_full=True,
        enable_lora=True,
        lora_paths=[f"{name}={path}" for name, path in adapters.items()],
        max_loras_per_batch=3,
        **more,
    )


def answers_of(running) -> list[dict]:
    params = [harness.greedy(NEW_TOKENS, kv_budget=budget) for _, budget in WANTED]
    answers = running.generate(
        input_ids=[IDS] * len(WANTED),
        lora_path=[name for name, _ in WANTED],
        sampling_params=params,
    )
    for (_, budget), answer in zip(WANTED, answers, strict=True):
        meta = answer["meta_info"]
        assert meta["kv_budget"] == budget
        assert meta["kv_resident_tokens"] == (budget or len(IDS) + NEW_TOKENS - 1)
    texts = {tuple(answer["output_ids"]) for answer in answers}
    assert len(texts) == len(WANTED), "adapters and budgets change the tokens"
    return answers


@pytest.mark.e2e
@pytest.mark.skipif(harness.DEVICE != "cpu", reason="float32 tokens, on the CPU")
def test_adapters_keep_budgets_of_their_own(tiny_models, adapters):
    """Tokens are those of a plain-PyTorch decode of the merged weights."""
    model = tiny_models("llama")
    with engine(
        model, adapters, lora_backend="torch_native", scheduler=run_scheduler_process
    ) as running:
        answers = answers_of(running)
    models = {name: merged(model, path) for name, path in adapters.items()}
    models[None] = merged(model, None)
    for (name, budget), answer in zip(WANTED, answers, strict=True):
        oracle = longflow_oracle.generate(models[name], IDS, budget or None, NEW_TOKENS)
        assert answer["output_ids"] == oracle.output_ids, (name, budget)


@pytest.mark.gpu
@pytest.mark.skipif(harness.DEVICE != "cuda", reason="set LONGFLOW_TEST_DEVICE=cuda with a GPU")
def test_adapters_on_a_gpu(tiny_models, adapters):
    """SGLang's own LoRA kernels, beside LongFlow's."""
    with engine(tiny_models("llama"), adapters) as running:
        answers_of(running)
