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
#: Qwen3.6-35B-A3B without its encoder: ten of forty layers attend, the others have a state.
_QWEN36_35B = dict(
    model_type="qwen3_5_moe_text",
    architectures=["Qwen3_5MoeForCausalLM"],
    hidden_size=2048,
    num_hidden_layers=40,
    layer_types=(["linear_attention"] * 3 + ["full_attention"]) * 10,
    full_attention_interval=4,
    num_attention_heads=16,
    num_key_value_heads=2,
    head_dim=256,
    linear_num_key_heads=16,
    linear_num_value_heads=32,
    linear_key_head_dim=128,
    linear_value_head_dim=128,
    linear_conv_kernel_dim=4,
    num_experts=256,
    num_experts_per_tok=8,
    moe_intermediate_size=512,
    shared_expert_intermediate_size=512,
    vocab_size=248320,
    max_position_embeddings=262144,
    rms_norm_eps=1e-6,
    rope_parameters=dict(rope_type="default", rope_theta=1e7, partial_rotary_factor=0.25),
    tie_word_embeddings=False,
)
GEOMETRIES = {
    "qwen3.6-35b-a3b": _QWEN36_35B,
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
