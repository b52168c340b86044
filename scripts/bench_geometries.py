# SPDX-License-Identifier: Apache-2.0
"""Hugging Face configurations to measure with; weights are random, so only sizes matter.

A slice has the layers of the whole model, but fewer of them: as many as one GPU holds in bf16.
"""

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
_GLM45 = dict(
    model_type="glm4_moe",
    architectures=["Glm4MoeForCausalLM"],
    num_attention_heads=96,
    num_key_value_heads=8,
    head_dim=128,
    attention_bias=True,
    partial_rotary_factor=0.5,
    rope_theta=1000000,
    n_shared_experts=1,
    n_group=1,
    topk_group=1,
    num_experts_per_tok=8,
    norm_topk_prob=True,
    vocab_size=151552,
    max_position_embeddings=131072,
    rms_norm_eps=1e-5,
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
    "qwen3-30b-a3b": dict(
        _QWEN3,
        model_type="qwen3_moe",
        architectures=["Qwen3MoeForCausalLM"],
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        decoder_sparse_step=1,
        norm_topk_prob=True,
        tie_word_embeddings=False,
    ),
    # 8 of 62 layers: 61 GB.
    "minimax-m2-slice": dict(
        model_type="minimax_m2",
        architectures=["MiniMaxM2ForCausalLM"],
        hidden_size=3072,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=48,
        num_key_value_heads=8,
        head_dim=128,
        rotary_dim=64,
        rope_theta=5000000,
        use_qk_norm=True,
        qk_norm_type="per_layer",
        num_local_experts=256,
        num_experts_per_tok=8,
        scoring_func="sigmoid",
        use_routing_bias=True,
        vocab_size=200064,
        max_position_embeddings=196608,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
    ),
    # 12 of 46 layers, the first one dense: 54 GB.
    "glm-4.5-air-slice": dict(
        _GLM45,
        hidden_size=4096,
        intermediate_size=10944,
        num_hidden_layers=12,
        n_routed_experts=128,
        moe_intermediate_size=1408,
        first_k_dense_replace=1,
        routed_scaling_factor=1.0,
        use_qk_norm=False,
    ),
    # 8 of 92 layers, the first three dense, as in GLM-4.6 and 4.7 too: 44 GB.
    "glm-4.5-slice": dict(
        _GLM45,
        hidden_size=5120,
        intermediate_size=12288,
        num_hidden_layers=8,
        n_routed_experts=160,
        moe_intermediate_size=1536,
        first_k_dense_replace=3,
        routed_scaling_factor=2.5,
        use_qk_norm=True,
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


def stock_environment(server: list[str]) -> dict[str, str]:
    """For a server without the plugin: only plugins that are named load, and on a CPU the platform
    is one of them. `server` are the server's arguments."""
    on_cpu = "device cpu" in " ".join(server).replace("=", " ")
    return {"SGLANG_PLUGINS": "longflow_cpu" if on_cpu else "none"}


def model_folder(geometry: str, folder: Path | None = None) -> Path:
    """A folder, new unless one is given, with nothing but the geometry's config.json."""
    folder = folder or Path(tempfile.mkdtemp(prefix=f"{geometry}-"))
    # No token ends an answer: its length is what was asked for, and SGLang does not know that.
    common = dict(torch_dtype="bfloat16", hidden_act="silu", bos_token_id=1, eos_token_id=None)
    (folder / "config.json").write_text(json.dumps({**GEOMETRIES[geometry], **common}))
    return folder
