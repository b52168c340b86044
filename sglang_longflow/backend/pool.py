# SPDX-License-Identifier: Apache-2.0
"""Reading SGLang's KV pool."""

from __future__ import annotations

import torch

from sglang_longflow.backend.sglang_types import AttentionLayer, KVPool, ModelRunner
from sglang_longflow.core.layers import KVLayers


def kv_layers(model_runner: ModelRunner) -> KVLayers:
    """The layers that SGLang's pool holds: a hybrid model's says which, in others it is all."""
    of_hybrid = getattr(model_runner.token_to_kv_pool, "full_attention_layer_id_mapping", None)
    if of_hybrid is None:
        return KVLayers(tuple(range(model_runner.model_config.num_hidden_layers)))
    return KVLayers(tuple(sorted(of_hybrid)))


def load_kv(
    kv_pool: KVPool, which: str, slots: torch.Tensor, layer: AttentionLayer
) -> torch.Tensor:
    """K or V at `slots`, [..., num_kv_heads, head_dim]; float32 and scaled where it is fp8.

    Parameters
    ----------
    kv_pool : MHATokenToKVPool
    which : str
        "k" or "v".
    slots : torch.Tensor
        [...] int64.
    layer : RadixAttention
    """
    buffer_of = kv_pool.get_key_buffer if which == "k" else kv_pool.get_value_buffer
    values = buffer_of(layer.layer_id)[slots]
    if values.dtype.itemsize > 1:
        return values
    return values.float() * scale_of(layer, which)


def scale_of(layer: AttentionLayer, which: str) -> float:
    """The factor of a layer's fp8 K or V; 1 if the checkpoint has none."""
    scale = getattr(layer, f"{which}_scale_float", None)
    return 1.0 if scale is None else float(scale)
