# SPDX-License-Identifier: Apache-2.0
"""Refuses, by name, what the kernels of a decode step do not take."""

from __future__ import annotations

import torch

from longflow_kernels.attend_score_evict.arguments import DecodeStep, KVCache, RowState
from longflow_kernels.attend_score_evict.launch import MIN_BLOCK_N, LaunchConfig
from longflow_kernels.attend_score_evict.layout import NUM_FIELDS
from longflow_kernels.attend_score_evict.rule import RankRule
from longflow_kernels.attend_score_evict.workspace import (
    MAX_BLOCK_N,
    MAX_CHUNK_SLOTS,
    Workspace,
)
from longflow_kernels.limits import HEAD_DIMS, MAX_GROUP
from longflow_kernels.target import cache_dtypes


def check_arguments(
    q: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    cache: KVCache,
    step: DecodeStep,
    state: RowState,
    rule: RankRule,
    workspace: Workspace,
) -> None:
    """ValueError for a shape, dtype or size that `op.attend_score_evict` does not take."""
    _check_heads(q, k_new, v_new, cache)
    batch, num_kv_heads = q.shape[0], v_new.shape[1]
    _check_step(batch, step)
    _check_config(batch, step.config, workspace)
    _check_state(num_kv_heads, cache, state, rule)


def _check_heads(q: torch.Tensor, k_new: torch.Tensor, v_new: torch.Tensor, cache: KVCache) -> None:
    batch, num_q_heads, head_dim = q.shape
    num_kv_heads, v_head_dim = v_new.shape[1:]
    group, rest = divmod(num_q_heads, num_kv_heads)
    if rest or not 1 <= group <= MAX_GROUP:
        raise ValueError(
            f"num_q_heads={num_q_heads}: expected 1 to {MAX_GROUP} times "
            f"num_kv_heads={num_kv_heads}"
        )
    for name, size in (("head_dim", head_dim), ("v_head_dim", v_head_dim)):
        if size not in HEAD_DIMS:
            raise ValueError(f"{name}={size}: expected one of {HEAD_DIMS}")
    for name, tensor, size in (("k", cache.k, head_dim), ("v", cache.v, v_head_dim)):
        if tuple(tensor.shape[1:]) != (num_kv_heads, size) or tensor.stride()[1:] != (size, 1):
            raise ValueError(
                f"cache.{name} is {tuple(tensor.shape)}: expected [slots, {num_kv_heads}, {size}], "
                f"each slot contiguous"
            )
        kinds = cache_dtypes(q)
        if tensor.dtype not in kinds:
            raise ValueError(f"cache.{name} is {tensor.dtype}: expected one of {kinds}")
    for name, tensor in (("q", q), ("k_new", k_new), ("v_new", v_new)):
        size = tensor.shape[2]
        if tensor.shape[0] != batch or tensor.stride()[1:] != (size, 1):
            raise ValueError(f"{name} is {tuple(tensor.shape)}: expected {batch} contiguous rows")


def _check_step(batch: int, step: DecodeStep) -> None:
    kv_indices, fields = step.kv_indices, step.fields
    if kv_indices.dtype != torch.int32 or kv_indices.dim() != 1 or kv_indices.stride(0) != 1:
        raise ValueError(
            f"kv_indices is {kv_indices.dtype} {tuple(kv_indices.shape)}: expected int32 [tokens]"
        )
    strided = batch > 1 and fields.stride(1) != 1
    if fields.dtype != torch.int32 or fields.shape != (NUM_FIELDS, batch) or strided:
        raise ValueError(
            f"fields is {fields.dtype} {tuple(fields.shape)}: "
            f"expected int32 [{NUM_FIELDS}, {batch}]"
        )


def _check_config(batch: int, config: LaunchConfig, workspace: Workspace) -> None:
    partials = batch * config.max_splits if config.max_splits > 1 else 0
    if batch > workspace.max_batch or partials > workspace.max_partials:
        raise ValueError(
            f"batch={batch} with max_splits={config.max_splits}: the workspace is for "
            f"{workspace.max_batch} rows and {workspace.max_partials} partial results"
        )
    block_n = config.block_n
    if not MIN_BLOCK_N <= block_n <= MAX_BLOCK_N or block_n & (block_n - 1):
        raise ValueError(
            f"block_n={block_n}: expected a power of 2 from {MIN_BLOCK_N} to {MAX_BLOCK_N}"
        )
    slots = config.chunk_slots
    if not block_n <= slots <= MAX_CHUNK_SLOTS or slots & (slots - 1):
        raise ValueError(
            f"chunk_slots={slots}: expected a power of 2 from block_n={block_n} to "
            f"{MAX_CHUNK_SLOTS}"
        )
    if config.chunks > workspace.best_score.shape[2]:
        raise ValueError(
            f"chunks={config.chunks}: the workspace takes {workspace.best_score.shape[2]}"
        )


def _check_state(num_kv_heads: int, cache: KVCache, state: RowState, rule: RankRule) -> None:
    victim_heads = state.next_slot.shape[1]
    if victim_heads not in (1, num_kv_heads):
        raise ValueError(f"next_slot has {victim_heads} heads: expected 1 or {num_kv_heads}")
    values, count = state.slot_values, cache.k.shape[0] * rule.values_per_slot(victim_heads)
    if values is not None and (values.dtype != torch.float32 or values.shape != (count,)):
        raise ValueError(
            f"slot_values is {values.dtype} {tuple(values.shape)}: expected float32 [{count}]"
        )
    if rule.novelty is not None:
        needed = ("slot_values", "recent", "row_level", "row_recall")
        missing = [name for name in needed if getattr(state, name) is None]
        if missing:
            raise ValueError(f"state without {', '.join(missing)}: a rule with novelty needs them")
