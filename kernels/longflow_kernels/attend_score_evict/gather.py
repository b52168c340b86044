# SPDX-License-Identifier: Apache-2.0
"""Copies a step's slots out of `req_to_token`."""

from __future__ import annotations

import triton
import triton.language as tl

from longflow_kernels.attend_score_evict.layout import KV_LEN, KV_START


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
    """Grid (programs of a row, batch): the slots of all rows, one row after the other.

    `req_to_token_ptr` [num_rows, max_tokens] int32, rows `req_stride` apart;
    `req_pool_indices_ptr` [batch]; `fields_ptr` [NUM_FIELDS, batch] int32; written is
    `kv_indices_ptr` [tokens] int32, row i from ``fields[KV_START, i]`` on.
    """
    row = tl.program_id(1)
    kv_len = tl.load(fields_ptr + KV_LEN * field_stride + row)
    start = tl.load(fields_ptr + KV_START * field_stride + row)
    req = tl.load(req_pool_indices_ptr + row).to(tl.int64)
    for first in range(tl.program_id(0) * BLOCK, kv_len, tl.num_programs(0) * BLOCK):
        position = first + tl.arange(0, BLOCK)
        in_row = position < kv_len
        slots = tl.load(req_to_token_ptr + req * req_stride + position, mask=in_row)
        tl.store(kv_indices_ptr + start + position, slots, mask=in_row)
