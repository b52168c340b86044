# SPDX-License-Identifier: Apache-2.0
"""Outputs of rows whose attention was split: parts of the second kernel of a decode step."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def zero_outputs(
    out_ptr,
    first_head,
    program,
    programs,
    NUM_Q_HEADS: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    BLOCK_DV: tl.constexpr,
):
    """Zero for a padded row, whose heads `programs` programs share: NaN there would spread."""
    offs_dv = tl.arange(0, BLOCK_DV)
    zero = tl.zeros([BLOCK_DV], tl.float32).to(out_ptr.dtype.element_ty)
    for head in range(program, NUM_Q_HEADS, programs):
        out_at = out_ptr + (first_head + head) * V_HEAD_DIM + offs_dv
        tl.store(out_at, zero, mask=offs_dv < V_HEAD_DIM)


@triton.jit
def combine_outputs(
    out_ptr,
    partial_out_ptr,
    partial_lse_ptr,
    heads,
    valid,
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
    valid_split = valid[:, None] & (offs_s < splits)[None, :]
    lse = tl.load(partial_lse_ptr + split, mask=valid_split, other=float("-inf"))
    parts = tl.load(
        partial_out_ptr + split[:, :, None] * V_HEAD_DIM + offs_dv[None, None, :],
        mask=valid_split[:, :, None] & in_dv[None, None, :],
        other=0.0,
    )
    peak = tl.where(valid, tl.max(lse, axis=1), 0.0)
    share = tl.exp2(lse - peak[:, None])
    total = tl.where(valid, tl.sum(share, axis=1), 1.0)
    out = tl.sum(parts * share[:, :, None], axis=1) / total[:, None]
    tl.store(
        out_ptr + heads[:, None] * V_HEAD_DIM + offs_dv[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=valid[:, None] & in_dv[None, :],
    )


@triton.jit
def combine_lse(
    partial_lse_ptr, heads, valid, splits, MAX_SPLITS: tl.constexpr, BLOCK_S: tl.constexpr
):
    """[n], log2 of the softmax normalisers of `heads` [n], from their splits; 0 if not `valid`."""
    if MAX_SPLITS == 1:
        return tl.load(partial_lse_ptr + heads, mask=valid, other=0.0)
    offs_s = tl.arange(0, BLOCK_S)
    lse_at = partial_lse_ptr + heads[:, None] * MAX_SPLITS + offs_s[None, :]
    valid_split = valid[:, None] & (offs_s < splits)[None, :]
    lse = tl.load(lse_at, mask=valid_split, other=float("-inf"))
    peak = tl.where(valid, tl.max(lse, axis=1), 0.0)
    total = tl.sum(tl.exp2(lse - peak[:, None]), axis=1)
    return tl.where(valid, peak + tl.log2(total), 0.0)
