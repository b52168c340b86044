# SPDX-License-Identifier: Apache-2.0
"""Similarity of a full row's tokens to newer ones, kept beside their scores."""

from __future__ import annotations

import torch
import triton

from longflow_kernels.attend_score_evict.arguments import DecodeStep, KVCache, RowState
from longflow_kernels.limits import COMPARED_TOKENS
from longflow_kernels.novelty.kernel import similarity_kernel
from longflow_kernels.target import FP8

#: Slots of a tile.
BLOCK_N = 64
#: Programs, all of a batch together: one row in sixteen compares its keys in a step, and a row of
#: 3,200 is 50 tiles.
MAX_PROGRAMS = 264
#: Rows that a program looks at together.
BLOCK_ROWS = 128


def update_similarity(
    k_new: torch.Tensor,
    cache: KVCache,
    step: DecodeStep,
    state: RowState,
    *,
    dependent: bool = False,
) -> None:
    """Raise the similarity of tokens that a newer one resembles (`reference.found_similarity`).

    Of rows whose ``remembers`` is `layout.USES_NOVELTY`, at their first overwrite and at every
    `COMPARED_TOKENS`-th; reads a quarter of their keys. Can be captured in a CUDA graph, and run
    beside the step's attention, which writes nothing that is read here.

    Parameters
    ----------
    k_new : torch.Tensor
        [batch, num_kv_heads, head_dim], this step's keys, rows of any stride.
    cache : KVCache
        With or without this step's keys; values are not read.
    step : DecodeStep
    state : RowState
        ``next_slot`` is where this step writes, with one victim per layer; ``recent`` holds the
        tokens written before, at least COMPARED_TOKENS; the similarities in ``slot_values`` are
        updated in place.
    dependent : bool
        The next kernel may start before this one has ended; it must wait for it before its own end.

    Raises
    ------
    ValueError
        No slot values, a ring that is too short, or more than one victim per layer.
    """
    next_slot, recent, slot_values = state.next_slot, state.recent, state.slot_values
    if next_slot.shape[1] != 1:
        raise ValueError(
            f"next_slot has {next_slot.shape[1]} heads: similarity is that of all heads"
        )
    if slot_values is None:
        raise ValueError("slot_values is None: similarities are kept there")
    if recent is None or recent.shape[2] < COMPARED_TOKENS:
        raise ValueError(
            f"recent holds {0 if recent is None else recent.shape[2]} tokens: similarity looks at "
            f"the last {COMPARED_TOKENS}"
        )
    head_dim, batch = cache.k.shape[2], step.fields.shape[1]
    tiles_at_most = batch + step.kv_indices.shape[0] // BLOCK_N
    programs = min(MAX_PROGRAMS, tiles_at_most)
    similarity_kernel[(programs,)](
        k_new_ptr=k_new,
        k_cache_ptr=cache.k,
        kv_indices_ptr=step.kv_indices,
        req_pool_indices_ptr=step.req_pool_indices,
        fields_ptr=step.fields,
        next_slot_ptr=next_slot,
        recent_ptr=recent,
        slot_values_ptr=slot_values,
        k_scale=cache.k_scale,
        batch=batch,
        field_stride=step.fields.stride(0),
        k_new_stride=k_new.stride(0),
        NUM_KV_HEADS=cache.k.shape[1],
        HEAD_DIM=head_dim,
        K_SLOT_STRIDE=cache.k.stride(0),
        BLOCK_C=max(16, triton.next_power_of_2(head_dim // 4)),
        BLOCK_N=BLOCK_N,
        BLOCK_R=BLOCK_ROWS,
        RECENT=recent.shape[2],
        COMPARED=COMPARED_TOKENS,
        NARROW=cache.k.dtype in FP8.values(),
        DOT_PRECISION="ieee",
        DEPENDENT=dependent,
        num_warps=4,
    )
