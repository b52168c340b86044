# SPDX-License-Identifier: Apache-2.0
"""Shapes of well-known models, for a machine that has neither their files nor the hub.

Fields are those of each model's ``config.json``. Of the refused ones only what decides is here.
"""

from __future__ import annotations

import difflib
from typing import Any

_FIELDS = (
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "vocab_size", "head_dim", "tie_word_embeddings",
)  # fmt: skip


def _shape(
    kind: str, sizes: tuple[int, ...], tied: bool, context: int | None = None, **more: Any
) -> dict[str, Any]:
    """A config: `sizes` are the first seven fields; `context` is ``max_position_embeddings``."""
    found = {"model_type": kind, **dict(zip(_FIELDS, (*sizes, tied), strict=True)), **more}
    return found if context is None else {**found, "max_position_embeddings": context}


def _experts(count: int, width: int) -> dict[str, Any]:
    return {"num_experts": count, "moe_intermediate_size": width, "decoder_sparse_step": 1}


def _each(config: dict[str, Any], *names: str) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(names, config)


def _glm(
    sizes: tuple[int, ...], context: int, experts: int, width: int, dense: int, *, use_qk_norm: bool
) -> dict[str, Any]:
    """`sizes` are layers, hidden size and width of an MLP; of `dense` layers, the first ones."""
    return _shape(
        "glm4_moe", (*sizes, 96, 8, 151552, 128), False, context, attention_bias=True,
        n_routed_experts=experts, n_shared_experts=1, moe_intermediate_size=width,
        first_k_dense_replace=dense, use_qk_norm=use_qk_norm,
    )  # fmt: skip


_GLM_355B = (92, 5120, 12288)
_QWEN3_4B = (36, 2560, 9728, 32, 8, 151936, 128)
_QWEN3_30B = (48, 2048, 6144, 32, 4, 151936, 128)
_QWEN3_235B = (94, 4096, 12288, 64, 4, 151936, 128)
_QWEN25_7B = (28, 3584, 18944, 28, 4, 152064, 128)
_QWEN25_14B = (48, 5120, 13824, 40, 8, 152064, 128)
_QWEN25_32B = (64, 5120, 27648, 40, 8, 152064, 128)
_LLAMA_8B = (32, 4096, 14336, 32, 8, 128256, 128)
_LLAMA_70B = (80, 8192, 28672, 64, 8, 128256, 128)
_LONG = 262144
_SHAPES: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-0.6B": _shape("qwen3", (28, 1024, 3072, 16, 8, 151936, 128), True, 40960),
    "Qwen/Qwen3-1.7B": _shape("qwen3", (28, 2048, 6144, 16, 8, 151936, 128), True, 40960),
    "Qwen/Qwen3-4B": _shape("qwen3", _QWEN3_4B, True, 40960),
    "Qwen/Qwen3-4B-Thinking-2507": _shape("qwen3", _QWEN3_4B, True, _LONG),
    "Qwen/Qwen3-4B-Instruct-2507": _shape("qwen3", _QWEN3_4B, True, _LONG),
    "Qwen/Qwen3-8B": _shape("qwen3", (36, 4096, 12288, 32, 8, 151936, 128), False, 40960),
    "Qwen/Qwen3-14B": _shape("qwen3", (40, 5120, 17408, 40, 8, 151936, 128), False, 40960),
    "Qwen/Qwen3-32B": _shape("qwen3", (64, 5120, 25600, 64, 8, 151936, 128), False, 40960),
    "Qwen/Qwen3-30B-A3B": _shape("qwen3_moe", _QWEN3_30B, False, 40960, **_experts(128, 768)),
    "Qwen/Qwen3-30B-A3B-Thinking-2507": _shape(
        "qwen3_moe", _QWEN3_30B, False, _LONG, **_experts(128, 768)
    ),
    "Qwen/Qwen3-30B-A3B-Instruct-2507": _shape(
        "qwen3_moe", _QWEN3_30B, False, _LONG, **_experts(128, 768)
    ),
    "Qwen/Qwen3-235B-A22B": _shape("qwen3_moe", _QWEN3_235B, False, 40960, **_experts(128, 1536)),
    "Qwen/Qwen3-235B-A22B-Thinking-2507": _shape(
        "qwen3_moe", _QWEN3_235B, False, _LONG, **_experts(128, 1536)
    ),
    "Qwen/Qwen3-235B-A22B-Instruct-2507": _shape(
        "qwen3_moe", _QWEN3_235B, False, _LONG, **_experts(128, 1536)
    ),
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": _shape(
        "qwen3_moe", (62, 6144, 8192, 96, 8, 151936, 128), False, _LONG, **_experts(160, 2560)
    ),
    "Qwen/Qwen2.5-1.5B-Instruct": _shape(
        "qwen2", (28, 1536, 8960, 12, 2, 151936, 128), True, 32768
    ),
    "Qwen/Qwen2.5-3B-Instruct": _shape("qwen2", (36, 2048, 11008, 16, 2, 151936, 128), True, 32768),
    "Qwen/Qwen2.5-7B-Instruct": _shape("qwen2", _QWEN25_7B, False, 32768),
    "Qwen/Qwen2.5-Math-7B": _shape("qwen2", _QWEN25_7B, False),
    "Qwen/Qwen2.5-14B-Instruct": _shape("qwen2", _QWEN25_14B, False, 32768),
    "Qwen/Qwen2.5-32B-Instruct": _shape("qwen2", _QWEN25_32B, False, 32768),
    "Qwen/Qwen2.5-72B-Instruct": _shape(
        "qwen2", (80, 8192, 29568, 64, 8, 152064, 128), False, 32768
    ),
    "Qwen/QwQ-32B": _shape("qwen2", _QWEN25_32B, False),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": _shape(
        "qwen2", (28, 1536, 8960, 12, 2, 151936, 128), False, 131072
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": _shape("qwen2", _QWEN25_7B, False, 131072),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": _shape("qwen2", _QWEN25_14B, False, 131072),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": _shape("qwen2", _QWEN25_32B, False, 131072),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": _shape("llama", _LLAMA_8B, False, 131072),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": _shape("llama", _LLAMA_70B, False, 131072),
    "meta-llama/Llama-3.1-8B-Instruct": _shape("llama", _LLAMA_8B, False, 131072),
    "meta-llama/Llama-3.1-70B-Instruct": _shape("llama", _LLAMA_70B, False, 131072),
    "meta-llama/Llama-3.2-1B-Instruct": _shape(
        "llama", (16, 2048, 8192, 32, 8, 128256, 64), True, 131072
    ),
    "meta-llama/Llama-3.2-3B-Instruct": _shape(
        "llama", (28, 3072, 8192, 24, 8, 128256, 128), True, 131072
    ),
    "meta-llama/Llama-3.3-70B-Instruct": _shape("llama", _LLAMA_70B, False, 131072),
    "mistralai/Mistral-7B-Instruct-v0.3": _shape(
        "mistral", (32, 4096, 14336, 32, 8, 32768, 128), False, 32768
    ),
    "mistralai/Mistral-Nemo-Instruct-2407": _shape(
        "mistral", (40, 5120, 14336, 32, 8, 131072, 128), False
    ),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": _shape(
        "mixtral", (32, 4096, 14336, 32, 8, 32000, 128), False, 32768, num_local_experts=8
    ),
    "microsoft/phi-4": _shape("phi3", (40, 5120, 17920, 40, 10, 100352, 128), False, 16384),
    # Without the layer that predicts a further token, which SGLang does not load.
    "zai-org/GLM-4.5-Air": _glm((46, 4096, 10944), 131072, 128, 1408, 1, use_qk_norm=False),
    "zai-org/GLM-4.5": _glm(_GLM_355B, 131072, 160, 1536, 3, use_qk_norm=True),
    **_each(
        _glm(_GLM_355B, 202752, 160, 1536, 3, use_qk_norm=True),
        "zai-org/GLM-4.6", "zai-org/GLM-4.7",
    ),
    # Published in fp8: its shape does not tell its bytes.
    **_each(
        _shape(
            "minimax_m2", (62, 3072, 1536, 48, 8, 200064, 128), False, 196608,
            num_local_experts=256, quantization_config={"quant_method": "fp8"},
        ),
        "MiniMaxAI/MiniMax-M2", "MiniMaxAI/MiniMax-M2.1", "MiniMaxAI/MiniMax-M2.5",
    ),
}  # fmt: skip


def _delta_rule(kind: str, sizes: tuple[int, ...], value_heads: int, **more: Any) -> dict[str, Any]:
    """Every fourth layer attends, with heads of 256; the others have a gated delta rule."""
    shape = _shape(kind, (*sizes, 256), False, _LONG, full_attention_interval=4, **more)
    return shape | {
        "linear_num_key_heads": 16, "linear_num_value_heads": value_heads,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
    }  # fmt: skip


def _with_vision(kind: str, text: dict[str, Any]) -> dict[str, Any]:
    """Released as a model that takes images, too."""
    return {"model_type": kind, "vision_config": {"model_type": kind}, "text_config": text}


_MANY_EXPERTS = {"shared_expert_intermediate_size": 512, "moe_intermediate_size": 512}
_QWEN3_NEXT = _delta_rule(
    "qwen3_next", (48, 2048, 5120, 16, 2, 151936), 32, num_experts=512, **_MANY_EXPERTS
)
_QWEN35_35B = _with_vision(
    "qwen3_5_moe",
    _delta_rule(
        "qwen3_5_moe_text", (40, 2048, 512, 16, 2, 248320), 32, num_experts=256, **_MANY_EXPERTS
    ),
)
_QWEN38_27B = _with_vision(
    "qwen3_5", _delta_rule("qwen3_5_text", (64, 5120, 17408, 24, 4, 248320), 48)
)
_NEMOTRON_LAYERS = "MEMEM*E" + 4 * "MEMEM*E" + "MEMEMEM*E" + "MEMEMEME"
_LFM2_LAYERS = ["conv", "conv"] + 4 * ["full_attention", "conv", "conv", "conv"]
_LFM2_LAYERS += ["full_attention", "conv", "conv", "full_attention", "conv", "conv"]
#: Of them only some layers have keys and values. Text alone: parameters do not count what else a
#: checkpoint holds (a vision tower, layers that predict further tokens).
_HYBRIDS: dict[str, dict[str, Any]] = {
    **_each(_QWEN3_NEXT, "Qwen/Qwen3-Next-80B-A3B-Instruct", "Qwen/Qwen3-Next-80B-A3B-Thinking"),
    **_each(_QWEN35_35B, "Qwen/Qwen3.5-35B-A3B", "Qwen/Qwen3.6-35B-A3B"),
    "Qwen/Qwen3.8-27B": _QWEN38_27B,
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": _shape(
        "nemotron_h", (52, 2688, 1856, 32, 2, 131072, 128), False, _LONG,
        hybrid_override_pattern=_NEMOTRON_LAYERS, mamba_num_heads=64, mamba_head_dim=64,
        ssm_state_size=128, n_groups=8, conv_kernel=4, n_routed_experts=128,
        moe_intermediate_size=1856, moe_shared_expert_intermediate_size=3712,
    ),
    # The MLP's width and the vocabulary are those with which a 4-bit file of it has its size.
    "tiiuae/Falcon-H1-7B-Instruct": _shape(
        "falcon_h1", (44, 3072, 12288, 12, 2, 130048, 128), False, _LONG,
        mamba_d_ssm=3072, mamba_n_heads=24, mamba_d_head=128, mamba_d_state=256,
        mamba_n_groups=1, mamba_d_conv=4,
    ),
    # Its files have the size of 128 heads. Where its four layers of attention lie is that of the
    # smaller ones of its family.
    "ibm-granite/granite-4.0-h-small": _shape(
        "granitemoehybrid", (40, 4096, 768, 32, 8, 100352, 128), True, 131072,
        layer_types=["attention" if i in (5, 15, 25, 35) else "mamba" for i in range(40)],
        mamba_expand=2, mamba_n_heads=128, mamba_d_state=128, mamba_n_groups=1, mamba_d_conv=4,
        num_local_experts=72, shared_intermediate_size=1536,
    ),
    "LiquidAI/LFM2-8B-A1B": _shape(
        "lfm2_moe", (24, 2048, 7168, 32, 8, 65536, 64), True, 128000,
        layer_types=_LFM2_LAYERS, conv_L_cache=3, num_experts=32, num_dense_layers=2,
        moe_intermediate_size=1792,
    ),
}  # fmt: skip
_WINDOWS = {"layer_types": ["sliding_attention", "full_attention"]}
#: Fields that decide, of models that people ask for.
_REFUSED: dict[str, dict[str, Any]] = {
    **_each({"model_type": "gpt_oss", **_WINDOWS}, "openai/gpt-oss-20b", "openai/gpt-oss-120b"),
    **_each(
        {"model_type": "deepseek_v3", "kv_lora_rank": 512},
        "deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-V3-0324", "deepseek-ai/DeepSeek-V3.1",
        "deepseek-ai/DeepSeek-R1", "deepseek-ai/DeepSeek-R1-0528",
    ),
    **_each(
        {"model_type": "deepseek_v32", "kv_lora_rank": 512}, "deepseek-ai/DeepSeek-V3.2"
    ),
    **_each({"model_type": "kimi_k2", "kv_lora_rank": 512}, "moonshotai/Kimi-K2-Instruct"),
    **_each({"model_type": "gemma3_text", "sliding_window": 512}, "google/gemma-3-1b-it"),
    **_each(
        {
            "model_type": "gemma3",
            "vision_config": {"model_type": "siglip_vision_model"},
            "text_config": {"model_type": "gemma3_text", "sliding_window": 1024},
        },
        "google/gemma-3-4b-it", "google/gemma-3-12b-it", "google/gemma-3-27b-it",
    ),
    **_each(
        {
            "model_type": "llama4",
            "text_config": {"model_type": "llama4_text", "attention_chunk_size": 8192},
        },
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
    ),
    **_each(
        {"model_type": "mistral", "sliding_window": 4096, "max_position_embeddings": 32768},
        "mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.1",
    ),
}  # fmt: skip


def builtin_name(model: str) -> str | None:
    """The name of the table that is meant: in any case, with or without the organisation."""
    asked = model.strip().lower()
    for name in (*_SHAPES, *_HYBRIDS, *_REFUSED):
        if asked in (name.lower(), name.split("/")[1].lower()):
            return name
    return None


def builtin_names() -> tuple[str, ...]:
    """The names of the table whose models can have a KV budget."""
    return tuple(_SHAPES)


def hybrid_names() -> tuple[str, ...]:
    """The names of the table whose models have keys and values in some layers alone."""
    return tuple(_HYBRIDS)


def refused_names() -> tuple[str, ...]:
    """The names of the table whose models cannot."""
    return tuple(_REFUSED)


def builtin_config(name: str) -> dict[str, Any] | None:
    """The fields of ``config.json`` of a name of the table; None for any other."""
    return _SHAPES.get(name) or _HYBRIDS.get(name) or _REFUSED.get(name)


def near_names(model: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Up to two of the known names that are spelt almost like `model`, the nearest first."""
    short = {name.split("/")[-1].lower(): name for name in reversed(known)}
    whole = {name.lower(): name for name in known}
    asked = model.strip().lower()
    found = [whole[one] for one in difflib.get_close_matches(asked, whole, 2, 0.75)]
    last = asked.split("/")[-1]
    found += [short[one] for one in difflib.get_close_matches(last, short, 2, 0.75)]
    return tuple(dict.fromkeys(found))[:2]
