"""The two Triton kernels of a decode step: attend over split rows, then combine and choose.

Logits are kept in base 2 (``log2(e)`` folded into the scale), so ``exp2`` and ``log2`` suffice.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from longflow_kernels.logits import capped_base2

#: Rows of the step's int32 description [NUM_FIELDS, batch], see `rows.pack_rows`.
KV_LEN = tl.constexpr(0)
OVERWRITES = tl.constexpr(1)
SCORE_OFFSET = tl.constexpr(2)
GIVEN_VICTIM = tl.constexpr(3)
WRITTEN = tl.constexpr(4)
KV_START = tl.constexpr(5)
BY_ATTENTION = tl.constexpr(6)
NUM_FIELDS = 7

#: Probabilities are kept up to 2**8, not 1: in float16 fewer of them fall below its normal numbers.
HEADROOM = tl.constexpr(8.0)
#: Scores are kept between the kernels in 16 bits, 7 of exponent and 9 of mantissa: from 2**-96 to
#: 2**32 in steps of 0.2 %. Smaller ones count as equally useless; larger ones cannot be, since a
#: score is at most 2**8 times the sum of a value's magnitudes.
CODE_SHIFT = tl.constexpr(14)
CODE_ROUND = tl.constexpr(1 << 13)
CODE_BIAS = tl.constexpr((127 - 96) << 23)
SCORE_FLOOR = tl.constexpr(2.0**-96)
#: Every scored row begins at a multiple of this in `scores`, so no tile holds two rows.
SCORE_ALIGN = tl.constexpr(128)


@triton.jit(do_not_specialize=["field_stride"])
def gather_indices_kernel(
    req_to_token_ptr,
    req_pool_indices_ptr,
    fields_ptr,
    kv_indices_ptr,
    field_stride,
    req_stride,
    BLOCK: tl.constexpr,
):
    """Grid (programs of a row, batch): the slots of all rows, one row after the other."""
    row = tl.program_id(1)
    kv_len = tl.load(fields_ptr + KV_LEN * field_stride + row)
    start = tl.load(fields_ptr + KV_START * field_stride + row)
    req = tl.load(req_pool_indices_ptr + row).to(tl.int64)
    for first in range(tl.program_id(0) * BLOCK, kv_len, tl.num_programs(0) * BLOCK):
        position = first + tl.arange(0, BLOCK)
        there = position < kv_len
        slots = tl.load(req_to_token_ptr + req * req_stride + position, mask=there)
        tl.store(kv_indices_ptr + start + position, slots, mask=there)


@triton.jit
def _encode(p, norm):
    """The score p * norm as 16 bits, rounded to the nearest."""
    bits = (p * norm + SCORE_FLOOR).to(tl.int32, bitcast=True)
    return ((bits + (CODE_ROUND - CODE_BIAS)) >> CODE_SHIFT).to(tl.int16)


@triton.jit
def _decode(codes):
    bits = ((codes.to(tl.int32) & 65535) << CODE_SHIFT) + CODE_BIAS
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _split_tokens(kv_len, min_split_tokens, max_splits, BLOCK_N: tl.constexpr):
    """Tokens of each split of a row; both kernels must agree on it."""
    splits = tl.minimum(max_splits, tl.cdiv(kv_len, min_split_tokens))
    return tl.cdiv(tl.cdiv(kv_len, splits), BLOCK_N) * BLOCK_N


# Not specialised on sizes of the batch: a server would compile again in the middle of its work.
@triton.jit(do_not_specialize=["max_splits", "min_split_tokens", "field_stride"])
def attend_kernel(
    q_ptr,
    k_new_ptr,
    v_new_ptr,
    k_cache_ptr,
    v_cache_ptr,
    kv_indices_ptr,
    req_pool_indices_ptr,
    fields_ptr,
    next_slot_ptr,
    out_ptr,
    partial_out_ptr,
    partial_lse_ptr,
    scores_ptr,
    tile_peak_ptr,
    scaling,
    logit_cap,
    k_scale,
    v_scale,
    max_splits,
    min_split_tokens,
    field_stride,
    q_stride,
    k_new_stride,
    v_new_stride,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    K_SLOT_STRIDE: tl.constexpr,
    V_SLOT_STRIDE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr,
    VICTIM_HEADS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (num_kv_heads, max_splits, batch): one split of one row for the heads of a KV head.

    The program whose split holds the new token stores its K/V first and then reads it like any
    other, so later steps see the same values and whatever lay in the slot before is never read.
    """
    kv_head = tl.program_id(0)
    split = tl.program_id(1)
    row = tl.program_id(2)
    num_kv_heads = tl.num_programs(0)
    if DEPENDENT:
        gdc_launch_dependents()  # the next kernel may take up what the last programs leave free

    kv_len = tl.load(fields_ptr + KV_LEN * field_stride + row)
    if kv_len == 0:  # a padded row of a CUDA graph
        return
    split_tokens = _split_tokens(kv_len, min_split_tokens, max_splits, BLOCK_N)
    start = split * split_tokens
    if start >= kv_len:
        return
    end = tl.minimum(start + split_tokens, kv_len)
    single = kv_len <= split_tokens

    req = tl.load(req_pool_indices_ptr + row).to(tl.int64)
    slots_ptr = kv_indices_ptr + tl.load(fields_ptr + KV_START * field_stride + row)
    overwrites = tl.load(fields_ptr + OVERWRITES * field_stride + row)
    written = kv_len - 1
    if overwrites != 0:
        written = tl.load(next_slot_ptr + req * VICTIM_HEADS + kv_head % VICTIM_HEADS).to(tl.int32)
    score_offset = tl.load(fields_ptr + SCORE_OFFSET * field_stride + row)
    by_attention = tl.load(fields_ptr + BY_ATTENTION * field_stride + row)

    offs_h = tl.arange(0, BLOCK_H)
    offs_d = tl.arange(0, BLOCK_D)
    offs_dv = tl.arange(0, BLOCK_DV)
    offs_n = tl.arange(0, BLOCK_N)
    in_group = offs_h < GROUP
    in_d = offs_d < HEAD_DIM
    in_dv = offs_dv < V_HEAD_DIM
    k_head_ptr = k_cache_ptr + kv_head * HEAD_DIM
    v_head_ptr = v_cache_ptr + kv_head * V_HEAD_DIM

    if (written >= start) & (written < end):
        slot = tl.load(slots_ptr + written).to(tl.int64)
        k_new_at = k_new_ptr + row.to(tl.int64) * k_new_stride + kv_head * HEAD_DIM + offs_d
        v_new_at = v_new_ptr + row.to(tl.int64) * v_new_stride + kv_head * V_HEAD_DIM + offs_dv
        k_new = tl.load(k_new_at, mask=in_d, other=0.0).to(tl.float32) / k_scale
        v_new = tl.load(v_new_at, mask=in_dv, other=0.0).to(tl.float32) / v_scale
        k_new = k_new.to(k_cache_ptr.dtype.element_ty)
        v_new = v_new.to(v_cache_ptr.dtype.element_ty)
        tl.store(k_head_ptr + slot * K_SLOT_STRIDE + offs_d, k_new, mask=in_d)
        tl.store(v_head_ptr + slot * V_SLOT_STRIDE + offs_dv, v_new, mask=in_dv)
        tl.debug_barrier()  # all threads of this program read it below

    q_head = kv_head * GROUP + offs_h
    q = tl.load(
        q_ptr + row.to(tl.int64) * q_stride + q_head[:, None] * HEAD_DIM + offs_d[None, :],
        mask=in_group[:, None] & in_d[None, :],
        other=0.0,
    )
    # scores_ptr [tiles, num_q_heads, BLOCK_N]: exp(logit) * |v|_1 of each scored slot (exp(logit)
    # where attention alone ranks), over 2 to the power of its tile's entry in tile_peak_ptr
    # [tiles, num_q_heads]. Heads of a tile lie side by side: writes to far places cost more.
    num_q_heads = num_kv_heads * GROUP
    places = tl.multiple_of(score_offset, SCORE_ALIGN)
    scores_at = scores_ptr + places.to(tl.int64) * num_q_heads + q_head[:, None] * BLOCK_N
    tile_peak_at = tile_peak_ptr + places // BLOCK_N * num_q_heads + q_head

    peak = tl.full([BLOCK_H], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_H, BLOCK_N], tl.float32)
    acc = tl.zeros([BLOCK_H, BLOCK_DV], tl.float32)
    for first in range(start, end, BLOCK_N):
        position = first + offs_n
        # Past the end the last slot is read again: no mask, and finite wherever the row is.
        slots = tl.load(slots_ptr + tl.minimum(position, end - 1)).to(tl.int64)
        k_at = k_head_ptr + slots[:, None] * K_SLOT_STRIDE + offs_d[None, :]
        v_at = v_head_ptr + slots[:, None] * V_SLOT_STRIDE + offs_dv[None, :]
        if BLOCK_D == HEAD_DIM:
            k = tl.load(k_at, eviction_policy="evict_first")
        else:
            k = tl.load(k_at, mask=in_d[None, :], other=0.0, eviction_policy="evict_first")
        if BLOCK_DV == V_HEAD_DIM:
            v = tl.load(v_at, eviction_policy="evict_first")
        else:
            v = tl.load(v_at, mask=in_dv[None, :], other=0.0, eviction_policy="evict_first")
        logits = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision=DOT_PRECISION)
        logits = capped_base2(logits * (scaling * k_scale), logit_cap, HAS_CAP)
        logits = tl.where((position < end)[None, :], logits, float("-inf"))
        # Whole, so that equal scores are equal in every tile.
        new_peak = tl.maximum(peak, tl.ceil(tl.max(logits, axis=1)) - HEADROOM)
        shrink = tl.exp2(peak - new_peak)
        p = tl.exp2(logits - new_peak[:, None])
        p_read = p.to(q.dtype)
        total = total * shrink[:, None] + p_read.to(tl.float32)  # what V is multiplied by, exactly
        acc = acc * shrink[:, None]
        v = v.to(q.dtype)
        acc = tl.dot(p_read, v, acc, input_precision=DOT_PRECISION)
        peak = new_peak
        if score_offset >= 0:
            # By tensor cores: every row of `norm` is the same, in the layout of the logits.
            ones = tl.full([BLOCK_H, BLOCK_DV], 1.0, q.dtype)
            norm = tl.dot(ones, tl.trans(tl.abs(v)), input_precision=DOT_PRECISION)
            norm = tl.where(by_attention != 0, 1.0, norm)
            # Past the row's end too (it is the row's own room): a mask there would make these
            # stores of 2 bytes each.
            tl.store(
                scores_at + first * num_q_heads + offs_n[None, :],
                _encode(p, norm),
                mask=in_group[:, None],
                eviction_policy="evict_last",
            )
            tl.store(tile_peak_at + first // BLOCK_N * num_q_heads, peak, mask=in_group)

    total_of_head = tl.sum(total, axis=1)
    acc = acc * (v_scale / total_of_head)[:, None]
    lse = peak + tl.log2(total_of_head)
    heads = row.to(tl.int64) * num_kv_heads * GROUP + q_head
    tl.store(partial_lse_ptr + heads * max_splits + split, lse, mask=in_group)
    stored = in_group[:, None] & in_dv[None, :]
    if single:
        tl.store(
            out_ptr + heads[:, None] * V_HEAD_DIM + offs_dv[None, :],
            acc.to(out_ptr.dtype.element_ty),
            mask=stored,
        )
    else:
        tl.store(
            partial_out_ptr + (heads[:, None] * max_splits + split) * V_HEAD_DIM + offs_dv[None, :],
            acc,
            mask=stored,
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
    fields_ptr,
    next_slot_ptr,
    recent_ptr,
    best_score_ptr,
    best_index_ptr,
    arrived_ptr,
    min_split_tokens,
    field_stride,
    protect_sink_tokens,
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
    split_tokens = _split_tokens(kv_len, min_split_tokens, MAX_SPLITS, BLOCK_N)
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

    offs_t = tl.arange(0, TILES)
    offs_n = tl.arange(0, BLOCK_N)
    offs_v = tl.arange(0, BLOCK_V)
    places = tl.multiple_of(score_offset, SCORE_ALIGN)
    best_score = tl.full([TILES, BLOCK_N], float("inf"), tl.float32)
    best_index = tl.zeros([TILES, BLOCK_N], tl.int32) + (kv_len - 1)
    for first in range(chunk * TILES * BLOCK_N, kv_len, CHUNKS * TILES * BLOCK_N):
        tiles = first // BLOCK_N + offs_t
        position = tiles[:, None] * BLOCK_N + offs_n[None, :]
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
            score += tl.sum(_decode(codes) * weight[:, :, None], axis=1)
        kept = (position >= kv_len) | (position < protect_sink_tokens)
        for place in range(RECENT):
            entry = tl.load(recent_at + place).to(tl.int32)
            entry = tl.where(written == 0, kv_len - RECENT + place, entry)
            entry = tl.where((written > 0) & (place == newest_place), newest, entry)
            kept = kept | (position == entry)
        better = (score < best_score) & (kept == 0)
        best_index = tl.where(better, position, best_index)
        best_score = tl.where(better, score, best_score)
    lowest = tl.min(best_score)
    index = tl.min(tl.where(best_score == lowest, best_index, 2147483647))

    victim_type = next_slot_ptr.dtype.element_ty
    if CHUNKS > 1:
        place_of_row = row * VICTIM_HEADS + victim_head
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
        tl.store(arrived_ptr + place_of_row, 0)
    if RECENT > 0:
        offs_r = tl.arange(0, BLOCK_R)
        ring = tl.where(written == 0, kv_len - RECENT + offs_r, newest)
        changed = (offs_r < RECENT) & ((written == 0) | (offs_r == newest_place))
        tl.store(recent_at + offs_r, ring.to(recent_ptr.dtype.element_ty), mask=changed)
    tl.store(victim_at, index.to(victim_type))
