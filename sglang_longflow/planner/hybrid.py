# SPDX-License-Identifier: Apache-2.0
"""Parameters of models with recurrent layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sglang_longflow.settings.hybrid_models import HybridLayers


def hybrid_parameters(text: Mapping[str, Any], layers: HybridLayers) -> int:
    """Parameters (elements) of a hybrid language model, as Transformers builds it.

    Fields that every model has are checked by the caller; others count as 0 where they are missing.
    """

    def get(*names: str) -> int:
        found = (text.get(name) for name in names)
        return next((value for value in found if isinstance(value, int) and value > 0), 0)

    hidden, kind = get("hidden_size"), str(text["model_type"])
    heads = get("num_attention_heads")
    kv_heads, size = get("num_key_value_heads") or heads, get("head_dim") or hidden // heads
    state = layers.state
    qwen, lfm = kind.startswith("qwen3"), kind.startswith("lfm2")

    query = hidden * heads * size
    attention = query * (3 if qwen else 2) + 2 * hidden * kv_heads * size  # Qwen's has a gate
    attention += 2 * size if qwen or lfm else 0  # norms of a head
    width = state.channels + 2 * state.groups * state.state_size
    if lfm:
        recurrent = hidden * (4 * hidden + state.kernel)
    elif qwen:
        recurrent = hidden * (width + state.channels + 2 * state.heads) + width * state.kernel
        recurrent += 2 * state.heads + state.head_size + state.channels * hidden
    else:
        biased = bool(text.get("mamba_conv_bias", text.get("use_conv_bias", True)))
        recurrent = hidden * (width + state.channels + state.heads)
        recurrent += width * (state.kernel + biased) + 3 * state.heads + state.channels * hidden
        has_norm = kind != "falcon_h1" or bool(text.get("mamba_rms_norm"))
        recurrent += state.channels * has_norm
    total = attention * len(layers.attention) + recurrent * len(layers.recurrent)

    count = len(layers.kinds)
    if kind == "nemotron_h":
        total += _nemotron_mlps(layers, hidden, get) + hidden * count
    else:
        total += _gated_mlps(text, kind, count, hidden, get) + 2 * hidden * count
    embeddings = get("vocab_size") * hidden * (1 if ties_embeddings(text) else 2)
    return total + embeddings + hidden


def ties_embeddings(text: Mapping[str, Any]) -> bool:
    """Whether the output matrix is that of the input: LFM2's is, unless it is said not to be."""
    tied = text.get("tie_word_embeddings")
    return str(text["model_type"]).startswith("lfm2") if tied is None else bool(tied)


def _nemotron_mlps(layers: HybridLayers, hidden: int, get: Callable[..., int]) -> int:
    """Layers of experts and of an MLP, both without a gate."""
    experts, inside = get("n_routed_experts"), get("moe_latent_size") or hidden
    sparse = experts * (2 * inside * get("moe_intermediate_size") + hidden)
    sparse += 2 * hidden * get("moe_shared_expert_intermediate_size")
    sparse += 2 * hidden * inside if get("moe_latent_size") else 0
    dense = 2 * hidden * get("intermediate_size")
    return sparse * layers.kinds.count("moe") + dense * layers.kinds.count("mlp")


def _gated_mlps(
    text: Mapping[str, Any], kind: str, count: int, hidden: int, get: Callable[..., int]
) -> int:
    experts = get("num_experts", "num_local_experts")
    dense = 3 * hidden * get("intermediate_size")
    if kind == "granitemoehybrid":
        sparse = experts * (dense + hidden) + 3 * hidden * get("shared_intermediate_size")
        return sparse * count
    if kind == "lfm2":
        return 3 * hidden * lfm2_width(text) * count
    if not experts:
        return dense * count
    sparse = experts * (3 * hidden * get("moe_intermediate_size") + hidden)
    if kind == "lfm2_moe":
        first = get("num_dense_layers")
        return dense * first + sparse * (count - first)
    shared = get("shared_expert_intermediate_size")
    return (sparse + (3 * shared + 1) * hidden) * count


def lfm2_width(text: Mapping[str, Any]) -> int:
    """The width of LFM2's MLP, which its config gives before it is cut and rounded."""
    width = int(text.get("block_ff_dim") or text.get("intermediate_size") or 0)
    if text.get("block_auto_adjust_ff_dim", True):
        width = int(2 * width / 3)
        factor = text.get("block_ffn_dim_multiplier", 1.0)
        width = int(width * factor) if factor is not None else width
        step = int(text.get("block_multiple_of") or 256)
        width = -(-width // step) * step
    return width
