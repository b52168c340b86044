"""A tiny random model with words, thinking and adapters, for tests of clients."""

from __future__ import annotations

import json
from pathlib import Path

import harness
import torch

LAYERS = 2
RANK = 4
ALPHA = 16
#: As Qwen3's: thinking unless it is switched off.
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)


def build(tokenizer_from: Path, folder: Path) -> Path:
    """A random Llama with SmolLM2's words, ``<think>`` and ``</think>``."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = CHAT_TEMPLATE
    vocab_size = len(tokenizer) + -len(tokenizer) % 64
    harness.build_tiny_model("llama", folder, vocab_size=vocab_size, num_hidden_layers=LAYERS)
    tokenizer.save_pretrained(folder)
    return folder


def _shapes() -> dict[str, tuple[int, int]]:
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
        for name, (out, into) in _shapes().items():
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{key}.lora_A.weight"] = torch.randn(RANK, into, generator=generator) * 0.1
            weights[f"{key}.lora_B.weight"] = torch.randn(out, RANK, generator=generator) * 0.1
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    config = dict(peft_type="LORA", task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, bias="none")
    config |= dict(target_modules=list(_shapes()), base_model_name_or_path="base", lora_dropout=0.0)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def merged(model: Path, adapter: Path):
    """The model with the adapter's product added to its weights, in plain PyTorch."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    found = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    weights = load_file(adapter / "adapter_model.safetensors")
    parameters = dict(found.named_parameters())
    with torch.no_grad():
        for key, a in weights.items():
            if key.endswith("lora_A.weight"):
                name = key.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
                b = weights[key.replace("lora_A", "lora_B")]
                parameters[name] += ALPHA / RANK * (b @ a)
    return found
