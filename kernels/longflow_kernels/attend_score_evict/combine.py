# SPDX-License-Identifier: Apache-2.0
"""The second kernel of a decode step: outputs from splits, and each full row's next victim."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from longflow_kernels.attend_score_evict.choose import (
    NO_INDEX,
    arrived_before,
    lowest_of_chunks,
    protect_recent,
    slot_values_at,
    sum_votes,
    update_ring,
)
from longflow_kernels.attend_score_evict.layout import (
    GIVEN_VICTIM,
    KV_LEN,
    KV_START,
    REMEMBERS,
    SCORE_ALIGN,
    SCORE_OFFSET,
    USES_NOVELTY,
    WRITTEN,
    tokens_of_split,
)
from longflow_kernels.attend_score_evict.outputs import combine_outputs, zero_outputs
from longflow_kernels.novelty.rank import (
    load_sums,
    next_level_of_row,
    next_recall_of_row,
    novelty_at_most,
    store_sums,
)


@triton.jit(do_not_specialize=["min_split_tokens", "field_stride", "first_tokens_kept"])
def combine_kernel(
    out_ptr,
    partial_out_ptr,
    partial_lse_ptr,
    scores_ptr,
    tile_peak_ptr,
    req_pool_indices_ptr,
    kv_indices_ptr,
    fields_ptr,
    next_slot_ptr,
    recent_ptr,
    slot_values_ptr,
    row_level_ptr,
    row_recall_ptr,
    best_score_ptr,
    best_index_ptr,
    chunk_sums_ptr,
    arrived_ptr,
    min_split_tokens,
    field_stride,
    first_tokens_kept,
    decay,
    novelty_weight,
    novelty_span,
    level_share,
    level_pace,
    lowest_level,
    recall_threshold,
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
    BLOCK_R: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (CHUNKS + programs for outputs, VICTIM_HEADS, batch): the slot to overwrite next.

    The first CHUNKS programs of a row each score a part of it, BLOCK_V heads at a time; the last
    one to arrive picks the lowest of all, so the result does not depend on their order. Equal
    scores go to the lowest row index. The others put outputs together, OUT_HEADS heads each.

    With `slot_values_ptr` a row that remembers ranks by the highest of its slots' past scores, each
    multiplied by `decay` once per step since. A slot starts at 0 when its token is written;
    nothing is stored before the row's first overwrite, because until then it may share its slots.
    With `row_level_ptr` a second value follows each slot's score, its similarity to newer tokens
    (`novelty.kernel`), and rows that use novelty rank by what is remembered plus what novelty adds
    (`novelty.rank`).

    With DEPENDENT the programs start before the attention has ended, and wait for it here.

    From the attention: `out_ptr` [batch, NUM_Q_HEADS, V_HEAD_DIM], complete for rows of one split;
    `partial_out_ptr` [batch, NUM_Q_HEADS, MAX_SPLITS, V_HEAD_DIM] float32; `partial_lse_ptr`
    [batch, NUM_Q_HEADS, MAX_SPLITS] float32, base 2; `scores_ptr` [tiles, NUM_Q_HEADS, BLOCK_N]
    int16 codes, each over 2 to the power of its entry in `tile_peak_ptr` [tiles, NUM_Q_HEADS].
    The step's (`arguments.DecodeStep`): `req_pool_indices_ptr` [batch], `kv_indices_ptr` [tokens],
    `fields_ptr` [NUM_FIELDS, batch]. Rows' state (`arguments.RowState`), the last four or some of
    them None: `next_slot_ptr` [num_rows, VICTIM_HEADS], `recent_ptr` [num_rows, VICTIM_HEADS,
    RECENT], `slot_values_ptr` [num_slots, values_per_slot], `row_level_ptr` and `row_recall_ptr`
    [num_rows]. Between the programs of a row: `best_score_ptr` float32 and `best_index_ptr` int32
    [batch, VICTIM_HEADS, CHUNKS], `chunk_sums_ptr` [batch, 3, CHUNKS] float32, and `arrived_ptr`
    [batch, VICTIM_HEADS] int32, which is 0 before and after.
    """
    MEMORY: tl.constexpr = slot_values_ptr is not None
    NOVELTY: tl.constexpr = row_level_ptr is not None
    VOTERS: tl.constexpr = NUM_Q_HEADS // VICTIM_HEADS
    chunk = tl.program_id(0)
    victim_head = tl.program_id(1)
    row = tl.program_id(2)
    kv_len = tl.load(fields_ptr + KV_LEN * field_stride + row)
    given_victim = tl.load(fields_ptr + GIVEN_VICTIM * field_stride + row)
    score_offset = tl.load(fields_ptr + SCORE_OFFSET * field_stride + row)
    written = tl.load(fields_ptr + WRITTEN * field_stride + row)
    req = tl.load(req_pool_indices_ptr + row).to(tl.int64)
    victim_at = next_slot_ptr + req * VICTIM_HEADS + victim_head
    newest = tl.load(victim_at, mask=kv_len > 0, other=0).to(tl.int32)
    first_head = row.to(tl.int64) * NUM_Q_HEADS
    if DEPENDENT:
        gdc_wait()
    if kv_len == 0:  # a padded row
        program = victim_head * tl.num_programs(0) + chunk
        programs = tl.num_programs(0) * VICTIM_HEADS
        zero_outputs(out_ptr, first_head, program, programs, NUM_Q_HEADS, V_HEAD_DIM, BLOCK_DV)
        return
    split_tokens = tokens_of_split(kv_len, min_split_tokens, MAX_SPLITS, BLOCK_N)
    splits = tl.cdiv(kv_len, split_tokens)
    if chunk >= CHUNKS:  # a program for outputs
        if MAX_SPLITS > 1 and splits > 1:
            part = victim_head * (tl.num_programs(0) - CHUNKS) + chunk - CHUNKS
            head = part * OUT_HEADS + tl.arange(0, OUT_HEADS)
            combine_outputs(
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
    if (given_victim >= 0) & (chunk == 0):
        tl.store(victim_at, given_victim.to(next_slot_ptr.dtype.element_ty))
    if score_offset < 0:
        return

    # From here on: the scores of this chunk of a full row, and the lowest of all chunks.
    if RECENT > 0:
        ring_at = recent_ptr + (req * VICTIM_HEADS + victim_head) * RECENT
        newest_place = (written + RECENT - 1) % RECENT
    memory = tl.load(fields_ptr + REMEMBERS * field_stride + row)
    remembers = memory > 0
    kv_start = tl.load(fields_ptr + KV_START * field_stride + row).to(tl.int64)
    offs_t = tl.arange(0, TILES)
    offs_n = tl.arange(0, BLOCK_N)
    first_score = tl.multiple_of(score_offset, SCORE_ALIGN)
    best_score = tl.full([TILES, BLOCK_N], float("inf"), tl.float32)
    best_index = tl.zeros([TILES, BLOCK_N], tl.int32) + (kv_len - 1)
    if NOVELTY:
        slots_below = tl.zeros([TILES, BLOCK_N], tl.float32)
        score_back = tl.zeros([TILES, BLOCK_N], tl.float32)
        score_total = tl.zeros([TILES, BLOCK_N], tl.float32)
        uses_novelty = memory == USES_NOVELTY
        level = tl.load(row_level_ptr + req, mask=uses_novelty & (written > 0), other=0.0)
        recall = tl.load(row_recall_ptr + req, mask=uses_novelty & (written > 0), other=0.0)
        gain = novelty_at_most(
            level, recall, weight=novelty_weight, recall_threshold=recall_threshold
        )
    for first in range(chunk * TILES * BLOCK_N, kv_len, CHUNKS * TILES * BLOCK_N):
        tiles = first // BLOCK_N + offs_t
        position = tiles[:, None] * BLOCK_N + offs_n[None, :]
        past = tl.zeros([TILES, BLOCK_N], tl.float32)
        if MEMORY:  # asked for before the scores are read, so that both are waited for together
            remembered = (position < kv_len) & remembers
            slots_at = kv_indices_ptr + kv_start + position
            value_at = slot_values_at(
                slot_values_ptr, slots_at, remembered, victim_head, VICTIM_HEADS, NOVELTY
            )
            old = remembered & (position != newest)
            past = tl.load(value_at, mask=old & (written > 1), other=0.0)
            if NOVELTY:
                valid = old & (written > 0) & uses_novelty
                similarity = tl.load(value_at + 1, mask=valid, other=0.0)
        now = sum_votes(
            scores_ptr,
            tile_peak_ptr,
            partial_lse_ptr,
            first_score,
            tiles,
            first_head,
            splits,
            victim_head,
            NUM_Q_HEADS,
            VOTERS,
            BLOCK_V,
            TILES,
            BLOCK_N,
            MAX_SPLITS,
            BLOCK_S,
        )
        score = now
        if MEMORY:
            past *= decay
            score = tl.maximum(now, past)
            tl.store(value_at, score, mask=remembered & (written > 0))
            if NOVELTY:
                slots_below += tl.where(remembered & (score < level), 1.0, 0.0)
                own = remembered & (written > 0) & uses_novelty
                tl.store(value_at + 1, 0.0, mask=own & (position == newest))
                score += gain * tl.minimum((1 - similarity) / novelty_span, 1.0)
        protected = (position >= kv_len) | (position < first_tokens_kept)
        if RECENT > 0:
            protected = protect_recent(
                protected, position, ring_at, kv_len, written, newest, newest_place, RECENT
            )
        if NOVELTY:
            score_total += tl.where(position < kv_len, now, 0.0)
            score_back += tl.where((past < level) & (protected == 0), now, 0.0)
        better = (score < best_score) & (protected == 0)
        best_index = tl.where(better, position, best_index)
        best_score = tl.where(better, score, best_score)
    lowest = tl.min(best_score)
    index = tl.min(tl.where(best_score == lowest, best_index, NO_INDEX))
    if NOVELTY:
        below, back, total = tl.sum(slots_below), tl.sum(score_back), tl.sum(score_total)

    if CHUNKS > 1:
        row_head = row * VICTIM_HEADS + victim_head
        if NOVELTY:
            sums_at = chunk_sums_ptr + row * 3 * CHUNKS
            store_sums(sums_at, chunk, below, back, total, CHUNKS)
        tl.store(best_score_ptr + row_head * CHUNKS + chunk, lowest)
        tl.store(best_index_ptr + row_head * CHUNKS + chunk, index)
        if arrived_before(arrived_ptr, row_head) < CHUNKS - 1:
            return
        # All others have stored theirs and read `next_slot` and `recent`.
        index = lowest_of_chunks(best_score_ptr, best_index_ptr, row_head * CHUNKS, CHUNKS)
        if NOVELTY:
            below, back, total = load_sums(sums_at, CHUNKS)
        tl.store(arrived_ptr + row_head, 0)
    if NOVELTY:
        level = next_level_of_row(
            level,
            below,
            total,
            kv_len,
            written,
            share=level_share,
            pace=level_pace,
            lowest=lowest_level,
        )
        tl.store(row_level_ptr + req, level, mask=uses_novelty)
        recall = next_recall_of_row(
            recall, back, total, written, first=recall_first, pace=recall_pace
        )
        tl.store(row_recall_ptr + req, recall, mask=uses_novelty)
    if RECENT > 0:
        update_ring(ring_at, kv_len, written, newest, newest_place, RECENT, BLOCK_R)
    tl.store(victim_at, index.to(next_slot_ptr.dtype.element_ty))
