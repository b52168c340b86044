# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of which only some layers have keys and values: Mamba, GDN, short convolution.

Shapes are those that the real ones have, made small: heads of 64, 128 and 256, up to 16 query heads
a KV head, every kind of layer at least once, and never a full-attention layer alone.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

#: By name: the layers with keys and values, by their index in the model.
FULL_LAYERS = {
    "qwen3_next": (2, 5),
    "qwen3_5": (1, 3),
    "qwen3_5_moe": (1, 3),
    "nemotron_h": (3, 6),
    "falcon_h1": (0, 1, 2),
    "granitemoehybrid": (1, 3),
    "lfm2": (1, 3),
    "lfm2_moe": (1, 3),
}
KINDS = tuple(FULL_LAYERS)
#: Of SGLang: its convolution states are bf16 unless this says otherwise.
FLOAT32_STATES = {"SGLANG_MAMBA_CONV_DTYPE": "float32", "SGLANG_MAMBA_SSM_DTYPE": "float32"}

_COMMON = dict(
    vocab_size=512,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
_DELTA_NET = dict(
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=64,
    linear_value_head_dim=64,
    linear_conv_kernel_dim=4,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
)
_EXPERTS = dict(
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=64,
    shared_expert_intermediate_size=64,
)
_MAMBA = dict(
    mamba_n_heads=8,
    mamba_d_head=32,
    mamba_d_state=32,
    mamba_n_groups=2,
    mamba_d_conv=4,
    mamba_expand=2,
    mamba_chunk_size=64,
)


def hybrid_config(kind: str, **changes: Any) -> Any:
    """The Transformers config of one of `KINDS`."""
    import transformers

    def heads(query: int, kv: int, size: int) -> dict[str, int]:
        return dict(num_attention_heads=query, num_key_value_heads=kv, head_dim=size)

    def make(name: str, **values: Any) -> Any:
        return getattr(transformers, name)(**{**_COMMON, **values, **changes})

    def by_interval(name: str, layers: int, interval: int, **values: Any) -> Any:
        kinds = ["linear_attention"] * (interval - 1) + ["full_attention"]
        made = make(
            name, num_hidden_layers=layers, layer_types=kinds * (layers // interval), **values
        )
        made.full_attention_interval = interval  # what SGLang reads
        return made

    if kind == "qwen3_next":
        return by_interval(
            "Qwen3NextConfig", 6, 3, hidden_size=64, intermediate_size=128,
            **heads(16, 2, 256), **_DELTA_NET, **_EXPERTS,
        )  # fmt: skip
    if kind == "qwen3_5":
        return by_interval(
            "Qwen3_5TextConfig", 4, 2, hidden_size=64, intermediate_size=128,
            **heads(12, 2, 256), **_DELTA_NET,
        )  # fmt: skip
    if kind == "qwen3_5_moe":
        return by_interval(
            "Qwen3_5MoeTextConfig", 4, 2, hidden_size=64,
            **heads(8, 1, 256), **_DELTA_NET, **_EXPERTS,
        )  # fmt: skip
    if kind == "nemotron_h":
        return make(
            "NemotronHConfig",
            layers_block_type=[
                *("linear_attention", "moe", "linear_attention", "full_attention"),
                *("moe", "linear_attention", "full_attention", "mlp"),
            ],
            hidden_size=128,
            intermediate_size=128,
            **heads(32, 2, 64),
            # Of 8 groups as all of NVIDIA's: SGLang's model does not read n_groups.
            **dict(mamba_num_heads=16, mamba_head_dim=32, ssm_state_size=32, n_groups=8),
            **dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=64),
            **dict(moe_shared_expert_intermediate_size=64, n_shared_experts=1, chunk_size=64),
            # Hugging Face holds steps above it in prefill, and not in decode; SGLang never does.
            time_step_min=1e-30,
        )
    if kind == "falcon_h1":
        return make(
            "FalconH1Config", hidden_size=128, intermediate_size=128, num_hidden_layers=3,
            mamba_d_ssm=256, mamba_rms_norm=True,
            mamba_norm_before_gate=False,  # as SGLang always does
            **heads(8, 2, 128), **_MAMBA,
        )  # fmt: skip
    if kind == "granitemoehybrid":
        return make(
            "GraniteMoeHybridConfig", hidden_size=384, intermediate_size=32, num_hidden_layers=4,
            num_attention_heads=6, num_key_value_heads=1,
            layer_types=["mamba", "attention"] * 2, attention_multiplier=0.125,
            num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=64,
            position_embedding_type="nope", embedding_multiplier=4.0, residual_multiplier=0.6,
            logits_scaling=2.0,
            **{**_MAMBA, "mamba_n_heads": 12, "mamba_expand": 1, "mamba_n_groups": 1},
        )  # fmt: skip
    if kind in ("lfm2", "lfm2_moe"):
        values = dict(block_auto_adjust_ff_dim=False)
        if kind == "lfm2_moe":
            values = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
            values |= dict(num_dense_layers=2)
        return make(
            "Lfm2Config" if kind == "lfm2" else "Lfm2MoeConfig",
            hidden_size=256, intermediate_size=128, num_hidden_layers=4, conv_L_cache=3,
            num_attention_heads=4, num_key_value_heads=1,
            layer_types=["conv", "full_attention"] * 2, **values,
        )  # fmt: skip
    raise ValueError(f"{kind!r} is not one of {KINDS}")


def make_hybrid(kind: str, seed: int = 0, **changes: Any) -> Any:
    """One of `KINDS` with random weights, in float32, that attends to few tokens at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = hybrid_config(kind, **changes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "conv" in name and parameter.dim() == 3:
                parameter.normal_(0, 0.5)
            elif "embed" in name or "lm_head" in name:
                parameter.normal_(0, 0.25)
            elif parameter.dim() > 1:
                parameter.normal_(0, 1.3 / math.sqrt(parameter.shape[-1]))
            elif name.endswith("dt_bias"):  # steps of 0.01 to 0.5: some heads remember for long
                parameter.uniform_(math.log(0.01), math.log(0.5)).exp_().expm1_().log_()
            elif name.endswith("bias") and "correction" not in name:
                parameter.normal_(0, 0.1)
    return model


def build_hybrid_model(kind: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """The same, saved where SGLang and Hugging Face load it."""
    model = make_hybrid(kind, seed, **changes)
    model.save_pretrained(folder)
    if kind == "nemotron_h":
        # As NVIDIA's own: SGLang 0.5.23 does not know the names that Transformers 5 gives layers.
        file = Path(folder) / "config.json"
        config = json.loads(file.read_text())
        del config["layers_block_type"]
        config["hybrid_override_pattern"] = model.config.hybrid_override_pattern
        file.write_text(json.dumps(config, indent=2))
    return folder
