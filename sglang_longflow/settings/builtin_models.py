# SPDX-License-Identifier: Apache-2.0
"""Shapes of well-known models, for a machine that has neither their files nor the hub.

Fields are those of each model's ``config.json``. Of the refused ones only what decides is here.
"""

from __future__ import annotations

import difflib
from typing import Any

_FIELDS = (
    "model_type", "num_hidden_layers", "hidden_size", "intermediate_size",
    "num_attention_heads", "num_key_value_heads", "vocab_size", "tie_word_embeddings",
)  # fmt: skip
#: Values of these fields; head_dim is 128 in all.
_SHAPES: dict[str, tuple[str, int, int, int, int, int, int, bool]] = {
    "Qwen/Qwen3-0.6B": ("qwen3", 28, 1024, 3072, 16, 8, 151936, True),
    "Qwen/Qwen3-1.7B": ("qwen3", 28, 2048, 6144, 16, 8, 151936, True),
    "Qwen/Qwen3-4B": ("qwen3", 36, 2560, 9728, 32, 8, 151936, True),
    "Qwen/Qwen3-8B": ("qwen3", 36, 4096, 12288, 32, 8, 151936, False),
    "Qwen/Qwen3-32B": ("qwen3", 64, 5120, 25600, 64, 8, 151936, False),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2", 28, 3584, 18944, 28, 4, 152064, False),
    "Qwen/Qwen2.5-Math-7B": ("qwen2", 28, 3584, 18944, 28, 4, 152064, False),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", 32, 4096, 14336, 32, 8, 128256, False),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": ("llama", 32, 4096, 14336, 32, 8, 128256, False),
    "meta-llama/Llama-3.3-70B-Instruct": ("llama", 80, 8192, 28672, 64, 8, 128256, False),
}


def builtin_name(model: str) -> str | None:
    """The name of the table that is meant: in any case, with or without the organisation."""
    asked = model.strip().lower()
    for name in builtin_names():
        if asked in (name.lower(), name.split("/")[1].lower()):
            return name
    return None


def builtin_names() -> tuple[str, ...]:
    """Every name of the table."""
    return tuple(_SHAPES)


def builtin_config(name: str) -> dict[str, Any] | None:
    """The fields of ``config.json`` of a name of the table; None for any other."""
    if name not in _SHAPES:
        return None
    return {**dict(zip(_FIELDS, _SHAPES[name])), "head_dim": 128}


def near_names(model: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Up to two of the known names that are spelt almost like `model`, the nearest first."""
    short = {name.split("/")[-1].lower(): name for name in reversed(known)}
    whole = {name.lower(): name for name in known}
    asked = model.strip().lower()
    found = [whole[one] for one in difflib.get_close_matches(asked, whole, 2, 0.75)]
    last = asked.split("/")[-1]
    found += [short[one] for one in difflib.get_close_matches(last, short, 2, 0.75)]
    return tuple(dict.fromkeys(found))[:2]
