"""SnapKV's scores of a prompt in two passes over its keys, no score matrix in memory."""

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


# Not specialised on the prompt: a server would compile again in the middle of its work.
@triton.jit(
    do_not_specialize=["num_keys", "chunk_keys"], do_not_specialize_on_alignment=["slots_ptr"]
)
def normaliser_kernel(
    q_ptr,
    k_cache_ptr,
    slots_ptr,
    lse_ptr,
    num_keys,
    chunk_keys,
    scaling,
    logit_cap,
    q_stride,
    k_slot_stride,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_CAP: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
):
    """Grid (row blocks, num_kv_heads, chunks): lse_ptr [num_kv_heads, ROWS, chunks], base 2."""
    first_row = tl.program_id(0) * BLOCK_M
    kv_head = tl.program_id(1)
    chunk = tl.program_id(2)
    start = chunk * chunk_keys
    end = tl.minimum(start + chunk_keys, num_keys)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for first in range(start, end, BLOCK_N):
        position = first + tl.arange(0, BLOCK_N)
        in_keys = position < end
        slots = tl.load(slots_ptr + position, mask=in_keys, other=0).to(tl.int64)
        logits = _logits(
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
    at = lse_ptr + (kv_head * ROWS + offs_m) * tl.num_programs(2) + chunk
    tl.store(at, peak + tl.log2(total), mask=offs_m < ROWS)


@triton.jit(do_not_specialize=["num_keys"], do_not_specialize_on_alignment=["slots_ptr"])
def mass_kernel(
    q_ptr,
    k_cache_ptr,
    slots_ptr,
    lse_ptr,
    mass_ptr,
    num_keys,
    num_kv_heads,
    scaling,
    logit_cap,
    q_stride,
    k_slot_stride,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_CAP: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
):
    """Grid (key blocks): attention that each key gets, summed over heads and window queries.

    lse_ptr [num_kv_heads, ROWS] base 2; mass_ptr [num_keys] float32.
    """
    position = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_keys = position < num_keys
    slots = tl.load(slots_ptr + position, mask=in_keys, other=0).to(tl.int64)
    mass = tl.zeros([BLOCK_N], tl.float32)
    for kv_head in range(num_kv_heads):
        for first_row in range(0, ROWS, BLOCK_M):
            logits = _logits(
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
                GROUP,
                ROWS,
                HEAD_DIM,
                BLOCK_M,
                BLOCK_D,
                HAS_CAP,
                DOT_PRECISION,
            )
            offs_m = first_row + tl.arange(0, BLOCK_M)
            # Rows beyond the last one weigh nothing.
            lse = tl.load(lse_ptr + kv_head * ROWS + offs_m, mask=offs_m < ROWS, other=float("inf"))
            mass += tl.sum(tl.exp2(logits - lse[:, None]), axis=0)
    tl.store(mass_ptr + position, mass, mask=in_keys)
