# SPDX-License-Identifier: Apache-2.0
"""The first kernel of a decode step: write the new token, attend, and score what is full.

Logits are kept in base 2 (``log2(e)`` folded into the scale), so ``exp2`` and ``log2`` suffice.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from longflow_kernels.attend_score_evict.layout import (
    BY_ATTENTION,
    HEADROOM,
    KV_LEN,
    KV_START,
    OVERWRITES,
    SCORE_ALIGN,
    SCORE_OFFSET,
    encode,
    tokens_of_split,
)
from longflow_kernels.logits import capped_base2


# Not specialised on sizes of the batch: a server would compile again in the middle of its work.
@triton.jit(do_not_specialize=["l2_capacity", "max_splits", "min_split_tokens", "field_stride"])
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
    l2_capacity,
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
    BESIDE: tl.constexpr,
):
    """Grid (num_kv_heads, max_splits, batch): one split of one row for the heads of a KV head.

    The program whose split holds the new token stores its K/V first and then reads it like any
    other, so later steps see the same values and whatever lay in the slot before is never read.

    With BESIDE the kernel before, which nothing here depends on, may still be running. The programs
    end after it, so whatever waits for this kernel has waited for both.

    `q_ptr` [batch, num_q_heads, HEAD_DIM], `k_new_ptr` [batch, num_kv_heads, HEAD_DIM] and
    `v_new_ptr` [.., V_HEAD_DIM], rows of any stride; `k_cache_ptr` [num_slots, num_kv_heads,
    HEAD_DIM] and `v_cache_ptr` [.., V_HEAD_DIM]. `kv_indices_ptr` [tokens], `req_pool_indices_ptr`
    [batch] and `fields_ptr` [NUM_FIELDS, batch] as in `arguments.DecodeStep`; `next_slot_ptr`
    [num_rows, VICTIM_HEADS] int32.
    Written: `out_ptr` [batch, num_q_heads, V_HEAD_DIM] of rows of one split; of others
    `partial_out_ptr` [batch, num_q_heads, max_splits, V_HEAD_DIM] float32; of all
    `partial_lse_ptr` [batch, num_q_heads, max_splits] float32, base 2; of scored rows `scores_ptr`
    [tiles, num_q_heads, BLOCK_N] int16, codes of exp(logit) * |v|_1 of each slot (of exp(logit) for
    rows ranked by attention), over 2 to the power of their tile's entry in `tile_peak_ptr`
    [tiles, num_q_heads] float32. Heads of a tile lie side by side: writes to far places cost more.
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
    split_tokens = tokens_of_split(kv_len, min_split_tokens, max_splits, BLOCK_N)
    start = split * split_tokens
    if start >= kv_len:
        return
    end = tl.minimum(start + split_tokens, kv_len)
    single = kv_len <= split_tokens

    req = tl.load(req_pool_indices_ptr + row).to(tl.int64)
    slots_ptr = kv_indices_ptr + tl.load(fields_ptr + KV_START * field_stride + row)
    overwrites = tl.load(fields_ptr + OVERWRITES * field_stride + row)
    newest = kv_len - 1
    if overwrites != 0:
        newest = tl.load(next_slot_ptr + req * VICTIM_HEADS + kv_head % VICTIM_HEADS).to(tl.int32)
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

    if (newest >= start) & (newest < end):
        slot = tl.load(slots_ptr + newest).to(tl.int64)
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
    num_q_heads = num_kv_heads * GROUP
    first_score = tl.multiple_of(score_offset, SCORE_ALIGN)
    scores_at = scores_ptr + first_score.to(tl.int64) * num_q_heads + q_head[:, None] * BLOCK_N
    tile_peak_at = tile_peak_ptr + first_score // BLOCK_N * num_q_heads + q_head

    # The first scores stay in the L2 cache, where the host has set room aside (`l2`). With a padded
    # head there is no register left to choose with.
    stays_in_l2 = (BLOCK_D != HEAD_DIM) | (score_offset < l2_capacity)
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
            codes = encode(p, norm)
            codes_at = scores_at + first * num_q_heads + offs_n[None, :]
            if stays_in_l2:
                tl.store(codes_at, codes, mask=in_group[:, None], eviction_policy="evict_last")
            else:
                tl.store(codes_at, codes, mask=in_group[:, None])
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
    if BESIDE:
        gdc_wait()
