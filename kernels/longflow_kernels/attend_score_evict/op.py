# SPDX-License-Identifier: Apache-2.0
"""Decode attention over rows of scattered slots that also picks each full row's next victim."""

from __future__ import annotations

import torch
import triton

from longflow_kernels.attend_score_evict.arguments import DecodeStep, KVCache, RowState
from longflow_kernels.attend_score_evict.attend import attend_kernel
from longflow_kernels.attend_score_evict.check import check_arguments
from longflow_kernels.attend_score_evict.combine import combine_kernel
from longflow_kernels.attend_score_evict.gather import gather_indices_kernel
from longflow_kernels.attend_score_evict.rule import RankRule
from longflow_kernels.attend_score_evict.workspace import Workspace
from longflow_kernels.novelty.level import LEVEL_PACE, LOWEST_LEVEL
from longflow_kernels.novelty.op import update_similarity
from longflow_kernels.novelty.recall import first_recall
from longflow_kernels.target import target_of

OUT_VALUES = 1024  # partial outputs that one warp puts together


def gather_kv_indices(
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    fields: torch.Tensor,
    kv_indices: torch.Tensor,
) -> None:
    """Copy the slots of a step's rows out of SGLang's ``req_to_token``.

    Parameters
    ----------
    req_to_token : torch.Tensor
        [num_rows, max_tokens] int32.
    req_pool_indices : torch.Tensor
        [batch] int32 or int64.
    fields : torch.Tensor
        [NUM_FIELDS, batch] int32 on the device, from `pack_rows`.
    kv_indices : torch.Tensor
        int32, at least as long as the rows together; row i goes to ``fields[KV_START, i]``.
    """
    batch = fields.shape[1]
    if batch:
        gather_indices_kernel[(4, batch)](
            req_to_token_ptr=req_to_token,
            req_pool_indices_ptr=req_pool_indices,
            fields_ptr=fields,
            kv_indices_ptr=kv_indices,
            field_stride=fields.stride(0),
            req_stride=req_to_token.stride(0),
            BLOCK=512,
        )


def attend_score_evict(
    q: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    cache: KVCache,
    step: DecodeStep,
    state: RowState,
    rule: RankRule,
    workspace: Workspace,
    *,
    scaling: float,
    logit_cap: float = 0.0,
) -> torch.Tensor:
    """One decode step of one layer: write, attend, score and choose, in two kernels or three.

    Writes each row's new K/V to its slot (``next_slot`` of a row that overwrites, else the row's
    last), attends over the row, and stores in ``next_slot`` the row index with the lowest LongFlow
    score (arXiv 2603.11504, eq. 6) of every scored row, the new token included. With
    ``victim_heads`` = num_kv_heads each KV head votes and overwrites by itself. The first kernel
    reads each K and V once; with ``rule.novelty`` another one reads a quarter of the keys of some
    rows again. Reads no host value of the device and allocates nothing but the result: it can be
    captured in a CUDA graph.

    Parameters
    ----------
    q : torch.Tensor
        [batch, num_q_heads, head_dim] bfloat16, float16 or float32, after RoPE.
    k_new, v_new : torch.Tensor
        [batch, num_kv_heads, head_dim] and [..., v_head_dim], before division by the scales.
    cache : KVCache
        Updated in place.
    step : DecodeStep
    state : RowState
        Updated in place.
    rule : RankRule
        The server's. Which parts of it a row uses is in ``step.fields``.
    workspace : Workspace
    scaling : float
        Factor on the logits.
    logit_cap : float
        Soft cap ``cap * tanh(logit / cap)``; 0 is none.

    Returns
    -------
    torch.Tensor
        [batch, num_q_heads, v_head_dim] in q's dtype; padded rows are zero.

    Raises
    ------
    ValueError
        A shape, dtype or size that the kernels do not take.
    """
    check_arguments(q, k_new, v_new, cache, step, state, rule, workspace)
    batch, num_q_heads, _ = q.shape
    out = torch.empty(batch, num_q_heads, v_new.shape[2], dtype=q.dtype, device=q.device)
    if batch == 0:
        return out
    dependent = _dependent_launch(q.device)
    if rule.novelty is not None:  # before the attention, which is long enough to hide it
        update_similarity(k_new, cache, step, state, dependent=dependent)
    _attend(
        q,
        k_new,
        v_new,
        cache,
        step,
        state,
        workspace,
        out,
        scaling=scaling,
        logit_cap=logit_cap,
        dependent=dependent,
        beside=dependent and rule.novelty is not None,
    )
    _combine(out, step, state, rule, workspace, dependent=dependent)
    return out


def _attend(
    q: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    cache: KVCache,
    step: DecodeStep,
    state: RowState,
    workspace: Workspace,
    out: torch.Tensor,
    *,
    scaling: float,
    logit_cap: float,
    dependent: bool,
    beside: bool,
) -> None:
    batch, num_q_heads, head_dim = q.shape
    num_kv_heads, v_head_dim = v_new.shape[1:]
    group, config = num_q_heads // num_kv_heads, step.config
    attend_kernel[(num_kv_heads, config.max_splits, batch)](
        q_ptr=q,
        k_new_ptr=k_new,
        v_new_ptr=v_new,
        k_cache_ptr=cache.k,
        v_cache_ptr=cache.v,
        kv_indices_ptr=step.kv_indices,
        req_pool_indices_ptr=step.req_pool_indices,
        fields_ptr=step.fields,
        next_slot_ptr=state.next_slot,
        out_ptr=out,
        partial_out_ptr=workspace.partial_out,
        partial_lse_ptr=workspace.partial_lse,
        scores_ptr=workspace.scores,
        tile_peak_ptr=workspace.tile_peak,
        scaling=scaling,
        logit_cap=logit_cap,
        k_scale=cache.k_scale,
        v_scale=cache.v_scale,
        l2_capacity=workspace.l2_capacity,
        max_splits=config.max_splits,
        min_split_tokens=config.min_split_tokens,
        field_stride=step.fields.stride(0),
        q_stride=q.stride(0),
        k_new_stride=k_new.stride(0),
        v_new_stride=v_new.stride(0),
        GROUP=group,
        HEAD_DIM=head_dim,
        V_HEAD_DIM=v_head_dim,
        K_SLOT_STRIDE=cache.k.stride(0),
        V_SLOT_STRIDE=cache.v.stride(0),
        BLOCK_H=max(16, triton.next_power_of_2(group)),
        BLOCK_D=triton.next_power_of_2(head_dim),
        BLOCK_DV=triton.next_power_of_2(v_head_dim),
        BLOCK_N=config.block_n,
        VICTIM_HEADS=state.next_slot.shape[1],
        HAS_CAP=logit_cap > 0,
        DOT_PRECISION="ieee",
        DEPENDENT=dependent,
        BESIDE=beside,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **target_of(q.device).options(max_registers=config.max_registers, early=beside),
    )


def _combine(
    out: torch.Tensor,
    step: DecodeStep,
    state: RowState,
    rule: RankRule,
    workspace: Workspace,
    *,
    dependent: bool,
) -> None:
    batch, num_q_heads, v_head_dim = out.shape
    victim_heads, config, novelty = state.next_slot.shape[1], step.config, rule.novelty
    recent = 0 if state.recent is None else state.recent.shape[2]
    voters = num_q_heads // victim_heads
    block_dv = triton.next_power_of_2(v_head_dim)
    block_s = triton.next_power_of_2(config.max_splits)
    out_heads = max(1, OUT_VALUES * config.choose_warps // (block_s * block_dv))
    parts = triton.cdiv(num_q_heads, out_heads * victim_heads) if config.max_splits > 1 else 0
    combine_kernel[(config.chunks + parts, victim_heads, batch)](
        out_ptr=out,
        partial_out_ptr=workspace.partial_out,
        partial_lse_ptr=workspace.partial_lse,
        scores_ptr=workspace.scores,
        tile_peak_ptr=workspace.tile_peak,
        req_pool_indices_ptr=step.req_pool_indices,
        kv_indices_ptr=step.kv_indices,
        fields_ptr=step.fields,
        next_slot_ptr=state.next_slot,
        recent_ptr=state.recent,
        slot_values_ptr=state.slot_values,
        row_level_ptr=state.row_level if novelty else None,
        row_recall_ptr=state.row_recall if novelty else None,
        best_score_ptr=workspace.best_score,
        best_index_ptr=workspace.best_index,
        chunk_sums_ptr=workspace.chunk_sums,
        arrived_ptr=workspace.arrived,
        min_split_tokens=config.min_split_tokens,
        field_stride=step.fields.stride(0),
        first_tokens_kept=rule.first_tokens_kept,
        decay=rule.decay,
        novelty_weight=novelty.weight if novelty else None,
        novelty_span=novelty.span if novelty else None,
        level_share=novelty.level_share if novelty else None,
        level_pace=LEVEL_PACE,
        lowest_level=LOWEST_LEVEL,
        recall_threshold=novelty.recall_threshold if novelty else None,
        recall_first=first_recall(novelty.recall_threshold) if novelty else None,
        recall_pace=state.recall_pace,
        NUM_Q_HEADS=num_q_heads,
        V_HEAD_DIM=v_head_dim,
        BLOCK_DV=block_dv,
        BLOCK_N=config.block_n,
        MAX_SPLITS=config.max_splits,
        BLOCK_S=block_s,
        VICTIM_HEADS=victim_heads,
        BLOCK_V=min(config.voters, triton.next_power_of_2(voters)),
        CHUNKS=config.chunks,
        TILES=config.chunk_slots // config.block_n,
        OUT_HEADS=out_heads,
        RECENT=recent,
        BLOCK_R=triton.next_power_of_2(max(1, recent)),
        DEPENDENT=dependent,
        num_warps=config.choose_warps,
        **target_of(out.device).options(early=dependent),
    )


def _dependent_launch(device: torch.device) -> bool:
    """Whether a kernel is started before the one it depends on has ended."""
    return target_of(device).starts_early
