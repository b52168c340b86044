"""The second kernel of a decode step: outputs from splits, and each full row's next victim."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from longflow_kernels.attend_score_evict.layout import (
    GIVEN_VICTIM,
    KV_LEN,
    KV_START,
    LIKENS,
    REMEMBERS,
    SCORE_ALIGN,
    SCORE_OFFSET,
    WRITTEN,
    decode,
    tokens_of_split,
)


@triton.jit
def _lse(partial_lse_ptr, heads, there, splits, MAX_SPLITS: tl.constexpr, BLOCK_S: tl.constexpr):
    """log2 of the softmax normalisers of `heads` [n], from their splits; 0 where not `there`."""
    if MAX_SPLITS == 1:
        return tl.load(partial_lse_ptr + heads, mask=there, other=0.0)
    offs_s = tl.arange(0, BLOCK_S)
    at = partial_lse_ptr + heads[:, None] * MAX_SPLITS + offs_s[None, :]
    lse = tl.load(at, mask=there[:, None] & (offs_s < splits)[None, :], other=float("-inf"))
    peak = tl.where(there, tl.max(lse, axis=1), 0.0)
    total = tl.sum(tl.exp2(lse - peak[:, None]), axis=1)
    return tl.where(there, peak + tl.log2(total), 0.0)


@triton.jit
def _combine_outputs(
    out_ptr,
    partial_out_ptr,
    partial_lse_ptr,
    heads,
    there,
    splits,
    V_HEAD_DIM: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The outputs of `heads` [n] from their splits: means weighted by shares of the softmax."""
    offs_s = tl.arange(0, BLOCK_S)
    offs_dv = tl.arange(0, BLOCK_DV)
    in_dv = offs_dv < V_HEAD_DIM
    split = heads[:, None] * MAX_SPLITS + offs_s[None, :]
    given = there[:, None] & (offs_s < splits)[None, :]
    lse = tl.load(partial_lse_ptr + split, mask=given, other=float("-inf"))
    parts = tl.load(
        partial_out_ptr + split[:, :, None] * V_HEAD_DIM + offs_dv[None, None, :],
        mask=given[:, :, None] & in_dv[None, None, :],
        other=0.0,
    )
    peak = tl.where(there, tl.max(lse, axis=1), 0.0)
    share = tl.exp2(lse - peak[:, None])
    total = tl.where(there, tl.sum(share, axis=1), 1.0)
    out = tl.sum(parts * share[:, :, None], axis=1) / total[:, None]
    tl.store(
        out_ptr + heads[:, None] * V_HEAD_DIM + offs_dv[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=there[:, None] & in_dv[None, :],
    )


@triton.jit(do_not_specialize=["min_split_tokens", "field_stride", "protect_sink_tokens"])
def combine_kernel(
    out_ptr,
    partial_out_ptr,
    partial_lse_ptr,
    scores_ptr,
    tile_peak_ptr,
    req_pool_indices_ptr,
    kv_indices_ptr,
    fields_ptr,
    slot_score_ptr,
    row_level_ptr,
    row_recall_ptr,
    next_slot_ptr,
    recent_ptr,
    best_score_ptr,
    best_index_ptr,
    chunk_sums_ptr,
    arrived_ptr,
    min_split_tokens,
    field_stride,
    protect_sink_tokens,
    decay,
    novelty_weight,
    novelty_span,
    level_share,
    level_pace,
    lowest_level,
    recall_enough,
    recall_first,
    recall_pace,
    NUM_Q_HEADS: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    VICTIM_HEADS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNKS: tl.constexpr,
    TILES: tl.constexpr,
    OUT_HEADS: tl.constexpr,
    RECENT: tl.constexpr,
    MEMORY: tl.constexpr,
    LIKENESS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (CHUNKS + programs for outputs, VICTIM_HEADS, batch): the slot to overwrite next.

    The first CHUNKS programs of a row each score a part of it, BLOCK_V heads at a time; the last
    one to arrive picks the lowest of all, so the result does not depend on their order. Equal
    scores go to the lowest row index. The others put outputs together, OUT_HEADS heads each.

    With MEMORY a row that remembers ranks by the highest of its slots' past scores, each counted
    `decay` times for every step since. A slot starts at 0 when its token is written; nothing is
    stored before the row's first overwrite, since until then its slots may not be its own. With
    LIKENESS a second word follows each slot's score, its likeness to newer tokens
    (`novelty.kernel`); rows that liken rank by what is remembered, and ``novelty_weight`` times
    the row's level times ``min(1, (1 - likeness) / novelty_span)``, as far as its recall is
    ``recall_enough``. The level follows what ``level_share`` of the row's slots have remembered
    less than, the recall what part of its scores goes to slots that were below (`novelty.recall`).

    With DEPENDENT the programs start before the attention has ended, and wait for it here.
    """
    chunk = tl.program_id(0)
    victim_head = tl.program_id(1)
    row = tl.program_id(2)
    kv_len = tl.load(fields_ptr + KV_LEN * field_stride + row)
    given = tl.load(fields_ptr + GIVEN_VICTIM * field_stride + row)
    score_offset = tl.load(fields_ptr + SCORE_OFFSET * field_stride + row)
    written = tl.load(fields_ptr + WRITTEN * field_stride + row)
    req = tl.load(req_pool_indices_ptr + row).to(tl.int64)
    victim_at = next_slot_ptr + req * VICTIM_HEADS + victim_head
    # Of the tokens written last, the newest is this step's.
    newest = tl.load(victim_at, mask=kv_len > 0, other=0).to(tl.int32)
    first_head = row.to(tl.int64) * NUM_Q_HEADS
    if DEPENDENT:
        gdc_wait()
    if kv_len == 0:  # a padded row: nothing of it is used, but NaN would spread
        offs_dv = tl.arange(0, BLOCK_DV)
        programs = tl.num_programs(0)
        for head in range(victim_head * programs + chunk, NUM_Q_HEADS, programs * VICTIM_HEADS):
            at = out_ptr + (first_head + head) * V_HEAD_DIM + offs_dv
            zero = tl.zeros([BLOCK_DV], tl.float32).to(out_ptr.dtype.element_ty)
            tl.store(at, zero, mask=offs_dv < V_HEAD_DIM)
        return
    split_tokens = tokens_of_split(kv_len, min_split_tokens, MAX_SPLITS, BLOCK_N)
    splits = tl.cdiv(kv_len, split_tokens)
    if chunk >= CHUNKS:
        if MAX_SPLITS > 1 and splits > 1:
            part = victim_head * (tl.num_programs(0) - CHUNKS) + chunk - CHUNKS
            head = part * OUT_HEADS + tl.arange(0, OUT_HEADS)
            _combine_outputs(
                out_ptr,
                partial_out_ptr,
                partial_lse_ptr,
                first_head + head,
                head < NUM_Q_HEADS,
                splits,
                V_HEAD_DIM,
                BLOCK_DV,
                MAX_SPLITS,
                BLOCK_S,
            )
        return
    if (given >= 0) & (chunk == 0):
        tl.store(victim_at, given.to(next_slot_ptr.dtype.element_ty))
    if score_offset < 0:
        return

    VOTERS: tl.constexpr = NUM_Q_HEADS // VICTIM_HEADS
    recent_at = recent_ptr + (req * VICTIM_HEADS + victim_head) * RECENT
    newest_place = 0
    if RECENT > 0:
        newest_place = (written + RECENT - 1) % RECENT

    memory = tl.load(fields_ptr + REMEMBERS * field_stride + row)
    remembers = memory > 0
    kv_start = tl.load(fields_ptr + KV_START * field_stride + row).to(tl.int64)
    offs_t = tl.arange(0, TILES)
    offs_n = tl.arange(0, BLOCK_N)
    offs_v = tl.arange(0, BLOCK_V)
    places = tl.multiple_of(score_offset, SCORE_ALIGN)
    best_score = tl.full([TILES, BLOCK_N], float("inf"), tl.float32)
    best_index = tl.zeros([TILES, BLOCK_N], tl.int32) + (kv_len - 1)
    if LIKENESS:
        counted = tl.zeros([TILES, BLOCK_N], tl.float32)
        recalled = tl.zeros([TILES, BLOCK_N], tl.float32)
        scored = tl.zeros([TILES, BLOCK_N], tl.float32)
        likens = memory == LIKENS
        level = tl.load(row_level_ptr + req, mask=likens & (written > 0), other=0.0)
        recall = tl.load(row_recall_ptr + req, mask=likens & (written > 0), other=0.0)
        worth = tl.minimum(recall / recall_enough, 1.0)
        worth = worth * worth
        worth = worth * worth
        most = level * novelty_weight * worth * worth
    for first in range(chunk * TILES * BLOCK_N, kv_len, CHUNKS * TILES * BLOCK_N):
        tiles = first // BLOCK_N + offs_t
        position = tiles[:, None] * BLOCK_N + offs_n[None, :]
        past = tl.zeros([TILES, BLOCK_N], tl.float32)
        if MEMORY:  # asked for before the scores are read, so that both are waited for together
            remembered = (position < kv_len) & remembers
            slot = tl.load(kv_indices_ptr + kv_start + position, mask=remembered, other=0)
            if LIKENESS:
                slot_at = slot_score_ptr + slot.to(tl.int64) * 2
            else:
                slot_at = slot_score_ptr + slot.to(tl.int64) * VICTIM_HEADS + victim_head
            old = remembered & (position != newest)
            past = tl.load(slot_at, mask=old & (written > 1), other=0.0)
            if LIKENESS:
                like = tl.load(slot_at + 1, mask=old & (written > 0) & likens, other=0.0)
        score = tl.zeros([TILES, BLOCK_N], tl.float32)
        for first_voter in tl.range(0, VOTERS, BLOCK_V, loop_unroll_factor=max(1, 8 // BLOCK_V)):
            voter = victim_head * VOTERS + first_voter + offs_v
            votes = first_voter + offs_v < VOTERS
            # Positions are not masked: what lies past the row's end is read, and not looked at.
            # [TILES, BLOCK_V, BLOCK_N]: in this order a thread holds all heads of its slots.
            at = tiles[:, None] * NUM_Q_HEADS + voter[None, :]
            codes_at = scores_ptr + places.to(tl.int64) * NUM_Q_HEADS
            codes = tl.load(
                codes_at + at[:, :, None] * BLOCK_N + offs_n[None, None, :],
                mask=votes[None, :, None],
                other=0,
            )
            peak_at = tile_peak_ptr + places // BLOCK_N * NUM_Q_HEADS
            peak = tl.load(peak_at + at, mask=votes[None, :], other=0.0)
            lse = _lse(partial_lse_ptr, first_head + voter, votes, splits, MAX_SPLITS, BLOCK_S)
            weight = tl.where(votes[None, :], tl.exp2(peak - lse[None, :]), 0.0)
            score += tl.sum(decode(codes) * weight[:, :, None], axis=1)
        now = score
        if MEMORY:
            past *= decay
            score = tl.maximum(score, past)
            tl.store(slot_at, score, mask=remembered & (written > 0))
            if LIKENESS:
                counted += tl.where(remembered & (score < level), 1.0, 0.0)
                own = remembered & (written > 0) & likens
                tl.store(slot_at + 1, 0.0, mask=own & (position == newest))
                score += most * tl.minimum((1 - like) / novelty_span, 1.0)
        kept = (position >= kv_len) | (position < protect_sink_tokens)
        for place in range(RECENT):
            entry = tl.load(recent_at + place).to(tl.int32)
            entry = tl.where(written == 0, kv_len - RECENT + place, entry)
            entry = tl.where((written > 0) & (place == newest_place), newest, entry)
            kept = kept | (position == entry)
        if LIKENESS:
            scored += tl.where(position < kv_len, now, 0.0)
            recalled += tl.where((past < level) & (kept == 0), now, 0.0)
        better = (score < best_score) & (kept == 0)
        best_index = tl.where(better, position, best_index)
        best_score = tl.where(better, score, best_score)
    lowest = tl.min(best_score)
    index = tl.min(tl.where(best_score == lowest, best_index, 2147483647))

    victim_type = next_slot_ptr.dtype.element_ty
    if LIKENESS:
        count, back, total = tl.sum(counted), tl.sum(recalled), tl.sum(scored)
    if CHUNKS > 1:
        place_of_row = row * VICTIM_HEADS + victim_head
        if LIKENESS:
            sums_at = chunk_sums_ptr + row * 3 * CHUNKS
            tl.store(sums_at + chunk, count)
            tl.store(sums_at + CHUNKS + chunk, back)
            tl.store(sums_at + 2 * CHUNKS + chunk, total)
        tl.store(best_score_ptr + place_of_row * CHUNKS + chunk, lowest)
        tl.store(best_index_ptr + place_of_row * CHUNKS + chunk, index)
        tl.debug_barrier()
        before = tl.atomic_add(arrived_ptr + place_of_row, 1, sem="acq_rel")
        if before < CHUNKS - 1:
            return
        # All others have stored theirs and read `next_slot` and `recent`.
        offs_c = tl.arange(0, CHUNKS)
        best_at = place_of_row * CHUNKS + offs_c
        scores = tl.load(best_score_ptr + best_at, cache_modifier=".cg")
        indices = tl.load(best_index_ptr + best_at, cache_modifier=".cg")
        index = tl.min(tl.where(scores == tl.min(scores, axis=0), indices, 2147483647), axis=0)
        if LIKENESS:
            count = tl.sum(tl.load(sums_at + offs_c, cache_modifier=".cg"))
            back = tl.sum(tl.load(sums_at + CHUNKS + offs_c, cache_modifier=".cg"))
            total = tl.sum(tl.load(sums_at + 2 * CHUNKS + offs_c, cache_modifier=".cg"))
        tl.store(arrived_ptr + place_of_row, 0)
    if LIKENESS:
        # Both begin when the row fills; what its slots remember does with the first overwrite.
        followed = level * (1 + level_pace * (level_share - count / kv_len))
        begun = total / kv_len * level_share
        level = tl.maximum(tl.where(written > 0, followed, begun), lowest_level)
        tl.store(row_level_ptr + req, level, mask=likens)
        part = tl.where(total > 0, back / tl.where(total > 0, total, 1.0), 0.0)
        recall += tl.where(written > 1, recall_pace * (part - recall), 0.0)
        recall = tl.where(written > 0, recall, recall_first)
        tl.store(row_recall_ptr + req, recall, mask=likens)
    if RECENT > 0:
        offs_r = tl.arange(0, BLOCK_R)
        ring = tl.where(written == 0, kv_len - RECENT + offs_r, newest)
        changed = (offs_r < RECENT) & ((written == 0) | (offs_r == newest_place))
        tl.store(recent_at + offs_r, ring.to(recent_ptr.dtype.element_ty), mask=changed)
    tl.store(victim_at, index.to(victim_type))
