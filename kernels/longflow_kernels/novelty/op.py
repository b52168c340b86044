"""Likeness of a full row's tokens to newer ones, kept beside their scores."""

from __future__ import annotations

import torch
import triton

from longflow_kernels.novelty.kernel import likeness_kernel
from longflow_kernels.novelty.reference import COMPARED_TOKENS

#: Slots of a tile.
BLOCK_N = 64
#: Programs, all of a batch together: one row in sixteen has its turn in a step, and a row of 3,200
#: is 50 tiles.
MAX_PROGRAMS = 264
#: Rows that a program looks at together.
BLOCK_ROWS = 128


def update_likeness(
    k_new: torch.Tensor,
    k_cache: torch.Tensor,
    kv_indices: torch.Tensor,
    req_pool_indices: torch.Tensor,
    fields: torch.Tensor,
    next_slot: torch.Tensor,
    recent: torch.Tensor,
    slot_score: torch.Tensor,
    *,
    k_scale: float = 1.0,
    dependent: bool = False,
) -> None:
    """Raise the likeness of tokens that a newer one resembles (`reference.found_likeness`).

    Of rows whose ``remembers`` is `layout.LIKENS`, at their first overwrite and at every
    `COMPARED_TOKENS`-th; reads a quarter of their keys. Can be captured in a CUDA graph, and run
    beside the step's attention, which writes nothing that is read here.

    Parameters
    ----------
    k_new : torch.Tensor
        [batch, num_kv_heads, head_dim], this step's keys, rows of any stride.
    k_cache : torch.Tensor
        [num_slots, num_kv_heads, head_dim], with or without them.
    kv_indices, req_pool_indices, fields
        As in `attend_score_evict`.
    next_slot : torch.Tensor
        [num_rows, 1] int32: where this step wrote.
    recent : torch.Tensor
        [num_rows, 1, at least COMPARED_TOKENS] int32 ring of the tokens written before.
    slot_score : torch.Tensor
        [num_slots * 2] float32: a slot's likeness after its score. Updated in place.
    k_scale : float
        What the cache's keys are multiplied by to give the real ones.
    dependent : bool
        The next kernel may start before this one has ended; it must wait for it before its own end.

    Raises
    ------
    ValueError
        A ring that is too short, or more than one victim in a layer.
    """
    if next_slot.shape[1] != 1:
        raise ValueError(f"next_slot has {next_slot.shape[1]} heads: likeness is that of all heads")
    if recent.shape[2] < COMPARED_TOKENS:
        raise ValueError(
            f"recent holds {recent.shape[2]} tokens: likeness looks at the last {COMPARED_TOKENS}"
        )
    head_dim, batch = k_cache.shape[2], fields.shape[1]
    tiles_at_most = batch + kv_indices.shape[0] // BLOCK_N
    programs = min(MAX_PROGRAMS, tiles_at_most)
    likeness_kernel[(programs,)](
        k_new,
        k_cache,
        kv_indices,
        req_pool_indices,
        fields,
        next_slot,
        recent,
        slot_score,
        k_scale,
        batch,
        fields.stride(0),
        k_new.stride(0),
        NUM_KV_HEADS=k_cache.shape[1],
        HEAD_DIM=head_dim,
        K_SLOT_STRIDE=k_cache.stride(0),
        BLOCK_C=max(16, triton.next_power_of_2(head_dim // 4)),
        BLOCK_N=BLOCK_N,
        BLOCK_R=BLOCK_ROWS,
        RECENT=recent.shape[2],
        COMPARED=COMPARED_TOKENS,
        NARROW=k_cache.dtype == torch.float8_e4m3fn,
        DOT_PRECISION="ieee",
        DEPENDENT=dependent,
        num_warps=4,
    )
