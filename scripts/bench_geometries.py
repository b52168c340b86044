# SPDX-License-Identifier: Apache-2.0
"""Hugging Face configurations to measure with; weights are random, so only sizes matter."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

_QWEN3 = dict(
    model_type="qwen3",
    architectures=["Qwen3ForCausalLM"],
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151936,
    max_position_embeddings=40960,
    rope_theta=1000000,
    rms_norm_eps=1e-6,
)
GEOMETRIES = {
    "qwen3-1.7b": dict(
        _QWEN3,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        tie_word_embeddings=True,
    ),
    "qwen3-8b": dict(
        _QWEN3,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        tie_word_embeddings=False,
    ),
    "qwen2.5-math-7b": dict(
        model_type="qwen2",
        architectures=["Qwen2ForCausalLM"],
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        tie_word_embeddings=False,
        max_position_embeddings=4096,
        rope_theta=10000,
        rms_norm_eps=1e-6,
    ),
    "tiny": dict(
        _QWEN3,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=512,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        rope_theta=10000,
    ),
}


def model_folder(geometry: str) -> Path:
    """A new folder with nothing but the geometry's config.json."""
    folder = Path(tempfile.mkdtemp(prefix=f"{geometry}-"))
    # No token ends an answer: its length is what was asked for, and SGLang does not know that.
    common = dict(torch_dtype="bfloat16", hidden_act="silu", bos_token_id=1, eos_token_id=None)
    (folder / "config.json").write_text(json.dumps({**GEOMETRIES[geometry], **common}))
    return folder
