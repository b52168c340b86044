# SPDX-License-Identifier: Apache-2.0
"""Tiny random mixtures of experts whose every layer has ordinary attention: MiniMax-M2, GLM-4.5.

Shapes are those that the real ones have, made small: RoPE over half of a head, 6 and 12 query heads
a KV head, experts chosen by a sigmoid and a bias.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

#: GLM-4.5-Air has no norm of queries and keys; GLM-4.5, 4.6 and 4.7 have.
KINDS = ("minimax_m2", "glm4_moe", "glm4_moe_normed")

_COMMON = dict(
    vocab_size=512,
    max_position_embeddings=4096,
    hidden_size=128,
    head_dim=64,
    num_hidden_layers=3,
    num_experts_per_tok=2,
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
_GLM = dict(
    intermediate_size=128,
    moe_intermediate_size=64,
    n_routed_experts=8,
    n_shared_experts=1,
    first_k_dense_replace=1,
    num_nextn_predict_layers=0,
    attention_bias=True,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
)


def expert_config(kind: str) -> Any:
    """The Transformers config of one of `KINDS`."""
    from transformers import Glm4MoeConfig, MiniMaxM2Config

    def heads(query: int, kv: int) -> dict[str, int]:
        return dict(num_attention_heads=query, num_key_value_heads=kv)

    if kind == "minimax_m2":
        # The fields that Transformers does not know are those of the published config.json.
        return MiniMaxM2Config(
            **_COMMON, **heads(12, 2), intermediate_size=64, num_local_experts=8,
            rotary_dim=32, rope_theta=10000.0, use_qk_norm=True, qk_norm_type="per_layer",
            scoring_func="sigmoid", use_routing_bias=True,
        )  # fmt: skip
    if kind == "glm4_moe":
        return Glm4MoeConfig(**_COMMON, **_GLM, **heads(12, 1), use_qk_norm=False)
    if kind == "glm4_moe_normed":
        return Glm4MoeConfig(
            **_COMMON, **_GLM, **heads(24, 2), use_qk_norm=True, routed_scaling_factor=2.5
        )
    raise ValueError(f"{kind!r} is not one of {KINDS}")


def build_expert_model(kind: str, folder: Path, seed: int = 0) -> Path:
    """Random weights in float32, with attention to few tokens, where SGLang and others load it."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(expert_config(kind), dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed" in name or "lm_head" in name:
                parameter.normal_(0, 0.25)
            elif parameter.dim() > 1:
                parameter.normal_(0, 1.3 / math.sqrt(parameter.shape[-1]))
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.uniform_(0.8, 1.6)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):  # it decides between experts, not weights
                buffer.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder
