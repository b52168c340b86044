# SPDX-License-Identifier: Apache-2.0
"""How similar each slot's token is to newer ones, updated for the rows that compare keys now."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents

from longflow_kernels.attend_score_evict.layout import (
    KV_LEN,
    KV_START,
    REMEMBERS,
    USES_NOVELTY,
    WRITTEN,
)


@triton.jit
def _cosines(
    k_cache_ptr,
    k_new_ptr,
    k_scale,
    slots_a,
    slots_b,
    newest_slot,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    K_SLOT_STRIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    NARROW: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
    WITH_NEWEST: tl.constexpr,
):
    """Cosines [n, m] of the keys in `slots_a` [n] and `slots_b` [m], over the slow channels of all
    KV heads (`reference.slow_channels`); BLOCK_C is at least a quarter of HEAD_DIM.

    `newest_slot` is not read, because it is being written. With WITH_NEWEST its key comes from
    `k_new_ptr` if it is one of `slots_b`; otherwise it is similar to nothing.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    SLOW: tl.constexpr = HALF * 3 // 4
    QUARTER: tl.constexpr = HALF - SLOW
    offs_c = tl.arange(0, BLOCK_C)
    channel = tl.where(offs_c < QUARTER, SLOW + offs_c, HALF + SLOW + offs_c - QUARTER)
    in_c = offs_c < 2 * QUARTER
    old_a = in_c[None, :] & (slots_a != newest_slot)[:, None]
    old_b = in_c[None, :] & (slots_b != newest_slot)[:, None]
    dots = tl.zeros([slots_a.shape[0], slots_b.shape[0]], tl.float32)
    size_a = tl.zeros([slots_a.shape[0]], tl.float32)
    size_b = tl.zeros([slots_b.shape[0]], tl.float32)
    for head in range(NUM_KV_HEADS):
        k_at = k_cache_ptr + head * HEAD_DIM + channel[None, :]
        a = tl.load(k_at + slots_a[:, None] * K_SLOT_STRIDE, mask=old_a, other=0.0)
        b = tl.load(k_at + slots_b[:, None] * K_SLOT_STRIDE, mask=old_b, other=0.0)
        if WITH_NEWEST:
            new = tl.load(k_new_ptr + head * HEAD_DIM + channel, mask=in_c, other=0.0)
            new = (new.to(tl.float32) / k_scale).to(b.dtype)
            b = tl.where((slots_b == newest_slot)[:, None], new[None, :], b)
        if NARROW:  # fp8: every value of it is one of float16
            a, b = a.to(tl.float16), b.to(tl.float16)
        dots = tl.dot(a, tl.trans(b), dots, input_precision=DOT_PRECISION)
        size_a += tl.sum(a.to(tl.float32) * a.to(tl.float32), axis=1)
        size_b += tl.sum(b.to(tl.float32) * b.to(tl.float32), axis=1)
    sizes = size_a[:, None] * size_b[None, :]
    return tl.where(sizes > 0, dots * tl.rsqrt(tl.where(sizes > 0, sizes, 1.0)), 0.0)


@triton.jit
def _update_tile(
    k_new_ptr,
    k_cache_ptr,
    kv_indices_ptr,
    req_pool_indices_ptr,
    fields_ptr,
    next_slot_ptr,
    recent_ptr,
    slot_values_ptr,
    k_scale,
    field_stride,
    k_new_stride,
    row,
    first,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    K_SLOT_STRIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    RECENT: tl.constexpr,
    COMPARED: tl.constexpr,
    NARROW: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
):
    """Slots `first` to ``first + BLOCK_N`` of a row that compares keys in this step."""
    written = tl.load(fields_ptr + WRITTEN * field_stride + row)
    kv_len = tl.load(fields_ptr + KV_LEN * field_stride + row)
    slots_ptr = kv_indices_ptr + tl.load(fields_ptr + KV_START * field_stride + row)
    req = tl.load(req_pool_indices_ptr + row).to(tl.int64)
    newest = tl.load(next_slot_ptr + req).to(tl.int32)
    first_overwrite = written == 1
    # Places of the tokens written last, the newest first. At the first overwrite there is one.
    offs_m = tl.arange(0, COMPARED)
    ring = tl.maximum(written - 1 - offs_m, 0) % RECENT
    last = tl.load(recent_ptr + req * RECENT + ring).to(tl.int32)
    last = tl.where((offs_m == 0) | first_overwrite, newest, last)
    last_slots = tl.load(slots_ptr + last).to(tl.int64)
    newest_slot = tl.load(slots_ptr + newest).to(tl.int64)
    new_ptr = k_new_ptr + row.to(tl.int64) * k_new_stride

    offs_n = tl.arange(0, BLOCK_N)
    position = first + offs_n
    in_row = position < kv_len
    slots = tl.load(slots_ptr + tl.minimum(position, kv_len - 1)).to(tl.int64)
    similarity = tl.zeros([BLOCK_N], tl.float32)
    if first_overwrite:
        # Until now the tokens lie in the order of the sequence: later tiles are newer.
        for other in range(first, kv_len, BLOCK_N):
            later = other + offs_n
            later_slots = tl.load(slots_ptr + tl.minimum(later, kv_len - 1)).to(tl.int64)
            similarities = _cosines(
                k_cache_ptr,
                new_ptr,
                k_scale,
                slots,
                later_slots,
                newest_slot,
                NUM_KV_HEADS,
                HEAD_DIM,
                K_SLOT_STRIDE,
                BLOCK_C,
                NARROW,
                DOT_PRECISION,
                WITH_NEWEST=False,
            )
            newer = (later[None, :] > position[:, None]) & (later < kv_len)[None, :]
            newer = newer & (position != newest)[:, None]
            similarity = tl.maximum(similarity, tl.max(tl.where(newer, similarities, 0.0), axis=1))
        since = tl.where(position == newest, 0, 1)
    else:
        same = position[:, None] == last[None, :]
        since = tl.min(tl.where(same, offs_m[None, :], COMPARED), axis=1)
    similarities = _cosines(
        k_cache_ptr,
        new_ptr,
        k_scale,
        slots,
        last_slots,
        newest_slot,
        NUM_KV_HEADS,
        HEAD_DIM,
        K_SLOT_STRIDE,
        BLOCK_C,
        NARROW,
        DOT_PRECISION,
        WITH_NEWEST=True,
    )
    newer = offs_m[None, :] < since[:, None]
    similarity = tl.maximum(similarity, tl.max(tl.where(newer, similarities, 0.0), axis=1))
    value_at = slot_values_ptr + 2 * slots + 1
    valid = in_row & (position != newest) & (written > 1)
    before = tl.load(value_at, mask=valid, other=0.0)
    tl.store(value_at, tl.minimum(tl.maximum(similarity, before), 1.0), mask=in_row)


@triton.jit(do_not_specialize=["batch", "field_stride"])
def similarity_kernel(
    k_new_ptr,
    k_cache_ptr,
    kv_indices_ptr,
    req_pool_indices_ptr,
    fields_ptr,
    next_slot_ptr,
    recent_ptr,
    slot_values_ptr,
    k_scale,
    batch,
    field_stride,
    k_new_stride,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    K_SLOT_STRIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    RECENT: tl.constexpr,
    COMPARED: tl.constexpr,
    NARROW: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (programs,): they share the tiles of BLOCK_N slots of all rows that compare keys now.

    Few programs, however large the batch: what runs beside this kernel begins when all of them
    have. Each looks at BLOCK_R rows at a time and takes every ``programs``-th of their tiles. Runs
    before `next_slot` and `recent` change. With DEPENDENT the attention starts beside it.

    `k_new_ptr` [batch, NUM_KV_HEADS, HEAD_DIM], rows of any stride; `k_cache_ptr` [num_slots,
    NUM_KV_HEADS, HEAD_DIM]. `kv_indices_ptr` [tokens], `req_pool_indices_ptr` [batch] and
    `fields_ptr` [NUM_FIELDS, batch] as in `arguments.DecodeStep`; `next_slot_ptr` [num_rows] and
    `recent_ptr` [num_rows, RECENT] int32. Written are the similarities in `slot_values_ptr`
    [num_slots, 2] float32, each after its slot's score.
    """
    if DEPENDENT:
        gdc_launch_dependents()
    program, programs = tl.program_id(0), tl.num_programs(0)
    offs_r = tl.arange(0, BLOCK_R)
    passed = 0  # tiles of the rows before these
    for first_row in range(0, batch, BLOCK_R):
        in_r = first_row + offs_r < batch
        field_at = fields_ptr + first_row + offs_r
        memory = tl.load(field_at + REMEMBERS * field_stride, mask=in_r, other=0)
        uses_novelty = memory == USES_NOVELTY
        written = tl.load(field_at + WRITTEN * field_stride, mask=in_r, other=0)
        kv_len = tl.load(field_at + KV_LEN * field_stride, mask=in_r, other=0)
        due = uses_novelty & ((written == 1) | ((written > 0) & (written % COMPARED == 0)))
        tiles = tl.where(due, (kv_len + BLOCK_N - 1) // BLOCK_N, 0)
        ends = tl.cumsum(tiles, axis=0)
        total = tl.sum(tiles, axis=0)
        for item in range((program + programs - passed % programs) % programs, total, programs):
            before = ends <= item
            row = first_row + tl.sum(before.to(tl.int32), axis=0)
            tile = item - tl.max(tl.where(before, ends, 0), axis=0)
            _update_tile(
                k_new_ptr,
                k_cache_ptr,
                kv_indices_ptr,
                req_pool_indices_ptr,
                fields_ptr,
                next_slot_ptr,
                recent_ptr,
                slot_values_ptr,
                k_scale,
                field_stride,
                k_new_stride,
                row,
                tile * BLOCK_N,
                NUM_KV_HEADS,
                HEAD_DIM,
                K_SLOT_STRIDE,
                BLOCK_C,
                BLOCK_N,
                RECENT,
                COMPARED,
                NARROW,
                DOT_PRECISION,
            )
        passed += total
