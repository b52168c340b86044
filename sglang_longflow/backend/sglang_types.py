# SPDX-License-Identifier: Apache-2.0
"""What the backend reads of SGLang's objects, as types: mypy does not follow SGLang's own."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class AttentionLayer(Protocol):
    """``sglang.srt.layers.radix_attention.RadixAttention``."""

    layer_id: int
    scaling: float
    logit_cap: float
    tp_q_head_num: int
    tp_k_head_num: int
    tp_v_head_num: int
    qk_head_dim: int
    v_head_dim: int


class KVPool(Protocol):
    """``sglang.srt.mem_cache.memory_pool.MHATokenToKVPool``."""

    def get_key_buffer(self, layer_id: int) -> torch.Tensor: ...
    def get_value_buffer(self, layer_id: int) -> torch.Tensor: ...


class ReqToTokenPool(Protocol):
    """``sglang.srt.mem_cache.memory_pool.ReqToTokenPool``."""

    req_to_token: torch.Tensor
    size: int


class ForwardBatch(Protocol):
    """``sglang.srt.model_executor.forward_batch_info.ForwardBatch``.

    Attributes
    ----------
    rids : list of str or None
        None for a batch that SGLang makes up to warm up.
    batch_size, num_padding : int
        Rows, those that pad a CUDA graph included; and how many of them pad it.
    seq_lens, seq_lens_cpu : torch.Tensor
        [batch] lengths of the sequences, this step's token included.
    """

    rids: list[str] | None
    batch_size: int
    num_padding: int
    forward_mode: Any
    req_pool_indices: torch.Tensor
    seq_lens: torch.Tensor
    seq_lens_cpu: torch.Tensor
    seq_lens_sum: int
    out_cache_loc: torch.Tensor


class ModelRunner(Protocol):
    """``sglang.srt.model_executor.model_runner.ModelRunner``."""

    req_to_token_pool: ReqToTokenPool
    token_to_kv_pool: KVPool
    dtype: torch.dtype
    model_config: Any
    server_args: Any
    max_total_num_tokens: int
