# SPDX-License-Identifier: Apache-2.0
"""SnapKV's sums over a prompt's keys in two passes over them, no score matrix in memory.

The first pass is shared out in chunks of keys, and a small kernel adds the chunks up between them.

Prompts of one batch go together. ``fields_ptr`` [prompts, 4] int32 has for each its row of the slot
table, how many keys it has before the window, the window's first query in ``q_ptr``, and where its
sums begin in ``mass_ptr``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longflow_kernels.logits import capped_base2


@triton.jit
def _logits(
    q_ptr,
    k_cache_ptr,
    slots,
    kv_head,
    first_row,
    in_keys,
    scaling,
    logit_cap,
    q_stride,
    k_slot_stride,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_CAP: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
):
    """Base-2 logits [BLOCK_M, BLOCK_N]: row r is query r // GROUP of the window, head r % GROUP."""
    offs_m = first_row + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    in_d = offs_d < HEAD_DIM
    q = tl.load(
        q_ptr
        + (offs_m // GROUP)[:, None].to(tl.int64) * q_stride
        + (kv_head * GROUP + offs_m % GROUP)[:, None] * HEAD_DIM
        + offs_d[None, :],
        mask=(offs_m < ROWS)[:, None] & in_d[None, :],
        other=0.0,
    )
    k = tl.load(
        k_cache_ptr + kv_head * HEAD_DIM + offs_d[:, None] + slots[None, :] * k_slot_stride,
        mask=in_d[:, None] & in_keys[None, :],
        other=0.0,
    )
    logits = tl.dot(q, k.to(q.dtype), input_precision=DOT_PRECISION) * scaling
    logits = capped_base2(logits, logit_cap, HAS_CAP)
    return tl.where(in_keys[None, :], logits, float("-inf"))


# Not specialised on the prompts: a server would compile again in the middle of its work.
@triton.jit(do_not_specialize=["num_chunks"])
def normaliser_kernel(
    q_ptr,
    k_cache_ptr,
    slot_table_ptr,
    fields_ptr,
    chunk_lse_ptr,
    num_chunks,
    scaling,
    logit_cap,
    q_stride,
    k_slot_stride,
    slot_table_stride,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_CAP: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
):
    """Grid (prompts * chunks, row blocks, num_kv_heads).

    chunk_lse_ptr [prompts, num_kv_heads, ROWS, chunks] float32: the logarithm, base 2, of each
    chunk's softmax normaliser; -inf where a chunk has no keys.
    """
    prompt = tl.program_id(0) // num_chunks
    chunk = tl.program_id(0) % num_chunks
    first_row = tl.program_id(1) * BLOCK_M
    kv_head = tl.program_id(2)
    row = tl.load(fields_ptr + prompt * 4).to(tl.int64)
    num_keys = tl.load(fields_ptr + prompt * 4 + 1)
    first_query = tl.load(fields_ptr + prompt * 4 + 2).to(tl.int64)
    slots_ptr = slot_table_ptr + row * slot_table_stride
    chunk_keys = tl.cdiv(tl.cdiv(num_keys, BLOCK_N), num_chunks) * BLOCK_N
    start = chunk * chunk_keys
    end = tl.minimum(start + chunk_keys, num_keys)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for first in range(start, end, BLOCK_N):
        position = first + tl.arange(0, BLOCK_N)
        in_keys = position < end
        slots = tl.load(slots_ptr + position, mask=in_keys, other=0).to(tl.int64)
        logits = _logits(
            q_ptr + first_query * q_stride,
            k_cache_ptr,
            slots,
            kv_head,
            first_row,
            in_keys,
            scaling,
            logit_cap,
            q_stride,
            k_slot_stride,
            GROUP,
            ROWS,
            HEAD_DIM,
            BLOCK_M,
            BLOCK_D,
            HAS_CAP,
            DOT_PRECISION,
        )
        new_peak = tl.maximum(peak, tl.max(logits, axis=1))
        total = total * tl.exp2(peak - new_peak) + tl.sum(
            tl.exp2(logits - new_peak[:, None]), axis=1
        )
        peak = new_peak
    offs_m = first_row + tl.arange(0, BLOCK_M)
    lse_row = (prompt * tl.num_programs(2) + kv_head) * ROWS + offs_m
    at = chunk_lse_ptr + lse_row.to(tl.int64) * num_chunks + chunk
    tl.store(at, peak + tl.log2(total), mask=offs_m < ROWS)


@triton.jit(do_not_specialize=["num_rows", "num_chunks"])
def combine_chunks_kernel(
    chunk_lse_ptr,
    lse_ptr,
    num_rows,
    num_chunks,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Grid (row blocks): lse_ptr [num_rows] of chunk_lse_ptr [num_rows, chunks], both base 2.

    Once for all of `mass_kernel`'s programs: each of them needs every row.
    """
    offs_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_c = tl.arange(0, BLOCK_C)
    rows = tl.minimum(offs_r, num_rows - 1)  # beyond the last, the last again
    parts = tl.load(
        chunk_lse_ptr + rows.to(tl.int64)[:, None] * num_chunks + offs_c[None, :],
        mask=(offs_c < num_chunks)[None, :],
        other=float("-inf"),
    )
    peak = tl.max(parts, axis=1)
    total = tl.sum(tl.exp2(parts - peak[:, None]), axis=1)
    tl.store(lse_ptr + offs_r, peak + tl.log2(total), mask=offs_r < num_rows)


@triton.jit(do_not_specialize_on_alignment=["mass_ptr"])
def mass_kernel(
    q_ptr,
    k_cache_ptr,
    slot_table_ptr,
    fields_ptr,
    lse_ptr,
    mass_ptr,
    num_kv_heads,
    scaling,
    logit_cap,
    q_stride,
    k_slot_stride,
    slot_table_stride,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_CAP: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
):
    """Grid (key blocks of the longest prompt, prompts).

    lse_ptr [prompts, num_kv_heads, ROWS] float32, base 2.
    mass_ptr float32: the attention that each key gets, summed over heads and window queries.
    """
    prompt = tl.program_id(1)
    num_keys = tl.load(fields_ptr + prompt * 4 + 1)
    if tl.program_id(0) * BLOCK_N >= num_keys:
        return
    row = tl.load(fields_ptr + prompt * 4).to(tl.int64)
    first_query = tl.load(fields_ptr + prompt * 4 + 2).to(tl.int64)
    place = tl.load(fields_ptr + prompt * 4 + 3).to(tl.int64)
    slots_ptr = slot_table_ptr + row * slot_table_stride
    position = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_keys = position < num_keys
    slots = tl.load(slots_ptr + position, mask=in_keys, other=0).to(tl.int64)
    mass = tl.zeros([BLOCK_N], tl.float32)
    for kv_head in range(num_kv_heads):
        for first_row in range(0, ROWS, BLOCK_M):
            logits = _logits(
                q_ptr + first_query * q_stride,
                k_cache_ptr,
                slots,
                kv_head,
                first_row,
                in_keys,
                scaling,
                logit_cap,
                q_stride,
                k_slot_stride,
                GROUP,
                ROWS,
                HEAD_DIM,
                BLOCK_M,
                BLOCK_D,
                HAS_CAP,
                DOT_PRECISION,
            )
            offs_m = first_row + tl.arange(0, BLOCK_M)
            lse_row = (prompt * num_kv_heads + kv_head) * ROWS + offs_m
            # Rows beyond the last one weigh nothing.
            lse = tl.load(lse_ptr + lse_row, mask=offs_m < ROWS, other=float("inf"))
            mass += tl.sum(tl.exp2(logits - lse[:, None]), axis=0)
    tl.store(mass_ptr + place + position, mass, mask=in_keys)
