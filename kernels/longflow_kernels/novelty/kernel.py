"""How like a newer token each slot's token is, brought up to date for the rows whose turn it is."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents

from longflow_kernels.attend_score_evict.layout import KV_LEN, KV_START, LIKENS, REMEMBERS, WRITTEN


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
    """[n, m]: of the slow channels of all KV heads; BLOCK_C is at least a quarter of HEAD_DIM.

    What `newest_slot` holds is not read, since it is being written. With WITH_NEWEST its key comes
    from `k_new_ptr` where it is one of `slots_b`; elsewhere it is like nothing.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    SLOW: tl.constexpr = HALF * 3 // 4
    QUARTER: tl.constexpr = HALF - SLOW
    offs_c = tl.arange(0, BLOCK_C)
    channel = tl.where(offs_c < QUARTER, SLOW + offs_c, HALF + SLOW + offs_c - QUARTER)
    given = offs_c < 2 * QUARTER
    old_a = given[None, :] & (slots_a != newest_slot)[:, None]
    old_b = given[None, :] & (slots_b != newest_slot)[:, None]
    dots = tl.zeros([slots_a.shape[0], slots_b.shape[0]], tl.float32)
    size_a = tl.zeros([slots_a.shape[0]], tl.float32)
    size_b = tl.zeros([slots_b.shape[0]], tl.float32)
    for head in range(NUM_KV_HEADS):
        at = k_cache_ptr + head * HEAD_DIM + channel[None, :]
        a = tl.load(at + slots_a[:, None] * K_SLOT_STRIDE, mask=old_a, other=0.0)
        b = tl.load(at + slots_b[:, None] * K_SLOT_STRIDE, mask=old_b, other=0.0)
        if WITH_NEWEST:
            new = tl.load(k_new_ptr + head * HEAD_DIM + channel, mask=given, other=0.0)
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
    slot_score_ptr,
    k_scale,
    field_stride,
    k_new_stride,
    row,
    tile,
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
    """Slots `tile` to ``tile + BLOCK_N`` of a row whose turn it is."""
    written = tl.load(fields_ptr + WRITTEN * field_stride + row)
    kv_len = tl.load(fields_ptr + KV_LEN * field_stride + row)
    slots_ptr = kv_indices_ptr + tl.load(fields_ptr + KV_START * field_stride + row)
    req = tl.load(req_pool_indices_ptr + row).to(tl.int64)
    newest = tl.load(next_slot_ptr + req).to(tl.int32)
    first = written == 1
    # Places of the tokens written last, the newest first. At the first overwrite there is one.
    offs_m = tl.arange(0, COMPARED)
    ring = tl.maximum(written - 1 - offs_m, 0) % RECENT
    last = tl.load(recent_ptr + req * RECENT + ring).to(tl.int32)
    last = tl.where((offs_m == 0) | first, newest, last)
    last_slots = tl.load(slots_ptr + last).to(tl.int64)
    newest_slot = tl.load(slots_ptr + newest).to(tl.int64)
    new_ptr = k_new_ptr + row.to(tl.int64) * k_new_stride

    offs_n = tl.arange(0, BLOCK_N)
    position = tile + offs_n
    here = position < kv_len
    slots = tl.load(slots_ptr + tl.minimum(position, kv_len - 1)).to(tl.int64)
    like = tl.zeros([BLOCK_N], tl.float32)
    if first:
        # Until now the tokens lie in the order of the sequence: later tiles are newer.
        for other in range(tile, kv_len, BLOCK_N):
            later = other + offs_n
            later_slots = tl.load(slots_ptr + tl.minimum(later, kv_len - 1)).to(tl.int64)
            alike = _cosines(
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
            like = tl.maximum(like, tl.max(tl.where(newer, alike, 0.0), axis=1))
        since = tl.where(position == newest, 0, 1)
    else:
        same = position[:, None] == last[None, :]
        since = tl.min(tl.where(same, offs_m[None, :], COMPARED), axis=1)
    alike = _cosines(
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
    like = tl.maximum(like, tl.max(tl.where(newer, alike, 0.0), axis=1))
    at = slot_score_ptr + 2 * slots + 1
    before = tl.load(at, mask=here & (position != newest) & (written > 1), other=0.0)
    tl.store(at, tl.minimum(tl.maximum(like, before), 1.0), mask=here)


@triton.jit(do_not_specialize=["batch", "field_stride"])
def likeness_kernel(
    k_new_ptr,
    k_cache_ptr,
    kv_indices_ptr,
    req_pool_indices_ptr,
    fields_ptr,
    next_slot_ptr,
    recent_ptr,
    slot_score_ptr,
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
    """Grid (programs,): they share the tiles of BLOCK_N slots of all rows whose turn it is.

    Few programs, however large the batch: what runs beside this kernel begins when all of them
    have. Each looks at BLOCK_R rows at a time and takes every so many-th of their tiles. Runs
    before `next_slot` and `recent` change. With DEPENDENT the attention starts beside it.
    """
    if DEPENDENT:
        gdc_launch_dependents()
    program, programs = tl.program_id(0), tl.num_programs(0)
    offs_r = tl.arange(0, BLOCK_R)
    passed = 0  # tiles of the rows before these
    for first_row in range(0, batch, BLOCK_R):
        there = first_row + offs_r < batch
        at = fields_ptr + first_row + offs_r
        likens = tl.load(at + REMEMBERS * field_stride, mask=there, other=0) == LIKENS
        written = tl.load(at + WRITTEN * field_stride, mask=there, other=0)
        kv_len = tl.load(at + KV_LEN * field_stride, mask=there, other=0)
        due = likens & ((written == 1) | ((written > 0) & (written % COMPARED == 0)))
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
                slot_score_ptr,
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
