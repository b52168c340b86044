# SPDX-License-Identifier: Apache-2.0
"""The choice of a full row's next victim: parts of the second kernel of a decode step."""

from __future__ import annotations

import triton
import triton.language as tl

from longflow_kernels.attend_score_evict.layout import decode
from longflow_kernels.attend_score_evict.outputs import combine_lse

NO_INDEX = tl.constexpr(2147483647)


@triton.jit
def sum_votes(
    scores_ptr,
    tile_peak_ptr,
    partial_lse_ptr,
    first_score,
    tiles,
    first_head,
    splits,
    victim_head,
    NUM_Q_HEADS: tl.constexpr,
    VOTERS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """[TILES, BLOCK_N] float32: scores of the slots of `tiles` [TILES], summed over the query heads
    that vote for this victim, BLOCK_V at a time.

    Positions are not masked: slots past the row's end are read and ignored.
    """
    offs_n = tl.arange(0, BLOCK_N)
    offs_v = tl.arange(0, BLOCK_V)
    score = tl.zeros([TILES, BLOCK_N], tl.float32)
    for first_voter in tl.range(0, VOTERS, BLOCK_V, loop_unroll_factor=max(1, 8 // BLOCK_V)):
        voter = victim_head * VOTERS + first_voter + offs_v
        valid = first_voter + offs_v < VOTERS
        # [TILES, BLOCK_V, BLOCK_N]: in this order a thread holds all heads of its slots.
        entry = tiles[:, None] * NUM_Q_HEADS + voter[None, :]
        codes_at = scores_ptr + first_score.to(tl.int64) * NUM_Q_HEADS
        codes = tl.load(
            codes_at + entry[:, :, None] * BLOCK_N + offs_n[None, None, :],
            mask=valid[None, :, None],
            other=0,
        )
        peak_at = tile_peak_ptr + first_score // BLOCK_N * NUM_Q_HEADS
        peak = tl.load(peak_at + entry, mask=valid[None, :], other=0.0)
        heads = first_head + voter
        lse = combine_lse(partial_lse_ptr, heads, valid, splits, MAX_SPLITS, BLOCK_S)
        weight = tl.where(valid[None, :], tl.exp2(peak - lse[None, :]), 0.0)
        score += tl.sum(decode(codes) * weight[:, :, None], axis=1)
    return score


@triton.jit
def slot_values_at(
    slot_values_ptr,
    slots_at,
    remembered,
    victim_head,
    VICTIM_HEADS: tl.constexpr,
    NOVELTY: tl.constexpr,
):
    """Where the remembered scores of the slots at `slots_at` [TILES, BLOCK_N] lie; with NOVELTY a
    slot's similarity is the entry after its score."""
    slot = tl.load(slots_at, mask=remembered, other=0)
    if NOVELTY:
        return slot_values_ptr + slot.to(tl.int64) * 2
    return slot_values_ptr + slot.to(tl.int64) * VICTIM_HEADS + victim_head


@triton.jit
def protect_recent(
    protected, position, ring_at, kv_len, written, newest, newest_place, RECENT: tl.constexpr
):
    """`protected` [TILES, BLOCK_N], and where `position` is one of the RECENT tokens written last.

    `ring_at` holds those before this step; this step's goes to its entry `newest_place`. The ring
    of a row that fills in this step is its last tokens.
    """
    for place in range(RECENT):
        entry = tl.load(ring_at + place).to(tl.int32)
        entry = tl.where(written == 0, kv_len - RECENT + place, entry)
        entry = tl.where((written > 0) & (place == newest_place), newest, entry)
        protected = protected | (position == entry)
    return protected


@triton.jit
def arrived_before(arrived_ptr, row_head):
    """The number of a row's programs that have ended, this one included; later ones see what it
    stored."""
    tl.debug_barrier()
    return tl.atomic_add(arrived_ptr + row_head, 1, sem="acq_rel")


@triton.jit
def lowest_of_chunks(best_score_ptr, best_index_ptr, first_chunk, CHUNKS: tl.constexpr):
    """The row index with the lowest of its chunks' scores, the first one of equals."""
    chunk_at = first_chunk + tl.arange(0, CHUNKS)
    scores = tl.load(best_score_ptr + chunk_at, cache_modifier=".cg")
    indices = tl.load(best_index_ptr + chunk_at, cache_modifier=".cg")
    return tl.min(tl.where(scores == tl.min(scores, axis=0), indices, NO_INDEX), axis=0)


@triton.jit
def update_ring(
    ring_at, kv_len, written, newest, newest_place, RECENT: tl.constexpr, BLOCK_R: tl.constexpr
):
    """Put this step's token in the ring of the last RECENT; all of them if the row fills now."""
    offs_r = tl.arange(0, BLOCK_R)
    ring = tl.where(written == 0, kv_len - RECENT + offs_r, newest)
    changed = (offs_r < RECENT) & ((written == 0) | (offs_r == newest_place))
    tl.store(ring_at + offs_r, ring.to(ring_at.dtype.element_ty), mask=changed)
