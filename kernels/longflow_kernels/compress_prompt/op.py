# SPDX-License-Identifier: Apache-2.0
"""SnapKV's sums over prompts whose keys lie in scattered slots, all prompts of a batch together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
import triton

from longflow_kernels.compress_prompt.kernel import (
    combine_chunks_kernel,
    mass_kernel,
    normaliser_kernel,
)
from longflow_kernels.limits import HEAD_DIMS
from longflow_kernels.target import cache_dtypes

#: Enough chunks of a prompt's keys to fill a GPU, and few enough to add up at once.
MAX_CHUNKS = 32
#: Rows (one head of one query) whose chunks a program adds up.
COMBINE_ROWS = 64


class Prompt(NamedTuple):
    """One prompt of a batch.

    Attributes
    ----------
    row : int
        Of the slot table.
    earlier_tokens : int
        Tokens before the window, at least 1.
    first_query : int
        Where the window's queries begin among the batch's.
    """

    row: int
    earlier_tokens: int
    first_query: int


@dataclass(frozen=True)
class PackedPrompts:
    """Prompts as the kernels read them, made once a batch by `pack_prompts`.

    Attributes
    ----------
    fields : torch.Tensor
        [prompts, 4] int32 on the device.
    places : tuple of slice
        Where each prompt's sums lie in `paged_prompt_mass`'s result.
    longest, total : int
        Earlier tokens of the longest prompt, and of all together.
    """

    fields: torch.Tensor
    places: tuple[slice, ...]
    longest: int
    total: int


def pack_prompts(prompts: Sequence[Prompt], device: torch.device | str) -> PackedPrompts:
    """Describe prompts to the kernels; the copy to a GPU waits for nothing.

    Raises
    ------
    ValueError
        A prompt without tokens before the window, or no prompt.
    """
    if not prompts or min(p.earlier_tokens for p in prompts) < 1:
        raise ValueError(f"prompts={list(prompts)}: expected some, with earlier_tokens >= 1 each")
    ends = list(accumulate(p.earlier_tokens for p in prompts))
    starts = [0, *ends[:-1]]
    fields = torch.tensor([[*p, at] for p, at in zip(prompts, starts, strict=True)])
    return PackedPrompts(
        fields=fields.to(torch.int32).to(device, non_blocking=True),
        places=tuple(slice(*ends) for ends in zip(starts, ends, strict=True)),
        longest=max(p.earlier_tokens for p in prompts),
        total=ends[-1],
    )


def paged_prompt_mass(
    q: torch.Tensor,
    window: int,
    k_cache: torch.Tensor,
    slot_table: torch.Tensor,
    prompts: PackedPrompts,
    scaling: float,
    logit_cap: float = 0.0,
    k_scale: float = 1.0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`prompt_mass` of every prompt, with the keys where they are: no gather, no score matrix.

    Three kernels for all prompts together. They read the keys twice: once for the softmax
    normalisers, whose chunks the second kernel adds up, once for the sums.

    Parameters
    ----------
    q : torch.Tensor
        [num_tokens, num_q_heads, head_dim] bfloat16, float16 or float32, after RoPE: the batch's.
    window : int
        Queries of each prompt, from its ``first_query`` on.
    k_cache : torch.Tensor
        [num_slots, num_kv_heads, head_dim]; q's dtype or fp8 (`target.FP8`).
    slot_table : torch.Tensor
        [rows, row_slots] int32: the slots of each row's tokens, in order.
    prompts : PackedPrompts
    scaling, logit_cap : float
        As in attention.
    k_scale : float
        Factor of the cache's values (fp8).
    out : torch.Tensor, optional
        [prompts.total] float32, for the result.

    Returns
    -------
    torch.Tensor
        [prompts.total] float32, a prompt's sums at its place.

    Raises
    ------
    ValueError
        A shape or dtype that the kernels do not take.
    """
    _, num_q_heads, head_dim = q.shape
    num_kv_heads = k_cache.shape[1]
    group, rest = divmod(num_q_heads, num_kv_heads)
    if rest:
        raise ValueError(
            f"num_q_heads={num_q_heads} is not a multiple of num_kv_heads={num_kv_heads}"
        )
    if head_dim not in HEAD_DIMS or k_cache.shape[2] != head_dim:
        raise ValueError(
            f"head_dim={head_dim} with keys of {k_cache.shape[2]}: expected one of {HEAD_DIMS}"
        )
    if k_cache.dtype not in cache_dtypes(q):
        raise ValueError(f"k_cache is {k_cache.dtype}: expected one of {cache_dtypes(q)}")
    if q.stride()[1:] != (head_dim, 1) or k_cache.stride()[1:] != (head_dim, 1):
        raise ValueError("q and k_cache must be contiguous within a token")
    if slot_table.dtype != torch.int32 or slot_table.stride(1) != 1:
        raise ValueError(f"slot_table is {slot_table.dtype}: expected int32, rows contiguous")
    rows = group * window
    block_m, block_n = 64, 64 if head_dim <= 128 else 32
    blocks = triton.cdiv(prompts.longest, block_n)
    chunks = min(MAX_CHUNKS, blocks)
    count = len(prompts.places)
    all_rows = count * num_kv_heads * rows
    chunk_lse = torch.empty(all_rows * chunks, dtype=torch.float32, device=q.device)
    lse = torch.empty(all_rows, dtype=torch.float32, device=q.device)
    if out is None:
        out = torch.empty(prompts.total, dtype=torch.float32, device=q.device)
    shared = dict(
        q_ptr=q,
        k_cache_ptr=k_cache,
        slot_table_ptr=slot_table,
        fields_ptr=prompts.fields,
        scaling=scaling * k_scale,
        logit_cap=logit_cap,
        q_stride=q.stride(0),
        k_slot_stride=k_cache.stride(0),
        slot_table_stride=slot_table.stride(0),
        GROUP=group,
        ROWS=rows,
        HEAD_DIM=head_dim,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_D=triton.next_power_of_2(head_dim),
        HAS_CAP=logit_cap > 0,
        DOT_PRECISION="ieee",
        num_warps=4,
    )
    normaliser_kernel[(count * chunks, triton.cdiv(rows, block_m), num_kv_heads)](
        chunk_lse_ptr=chunk_lse, num_chunks=chunks, **shared
    )
    combine_chunks_kernel[(triton.cdiv(all_rows, COMBINE_ROWS),)](
        chunk_lse_ptr=chunk_lse,
        lse_ptr=lse,
        num_rows=all_rows,
        num_chunks=chunks,
        BLOCK_R=COMBINE_ROWS,
        BLOCK_C=triton.next_power_of_2(MAX_CHUNKS),  # not of `chunks`: one kernel for all prompts
        num_warps=4,
    )
    mass_kernel[(blocks, count)](lse_ptr=lse, mass_ptr=out, num_kv_heads=num_kv_heads, **shared)
    return out
