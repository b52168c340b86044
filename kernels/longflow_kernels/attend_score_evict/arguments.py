# SPDX-License-Identifier: Apache-2.0
"""What a decode step is given, grouped by what belongs together: cache, step and rows."""

from __future__ import annotations

from typing import NamedTuple

import torch

from longflow_kernels.attend_score_evict.launch import LaunchConfig


class KVCache(NamedTuple):
    """One layer's K and V in the pool.

    Attributes
    ----------
    k, v : torch.Tensor
        [num_slots, num_kv_heads, head_dim] and [..., v_head_dim]; q's dtype or the
        target's fp8 (`target.FP8`).
    k_scale, v_scale : float
        Factors of the values (fp8): the cache holds ``k / k_scale``.
    """

    k: torch.Tensor
    v: torch.Tensor
    k_scale: float = 1.0
    v_scale: float = 1.0


class DecodeStep(NamedTuple):
    """A decode step of a batch, the same in every layer.

    Attributes
    ----------
    kv_indices : torch.Tensor
        int32, the pool slots of one row after the other, as FlashInfer takes them at page size 1;
        row i begins at the sum of the earlier ``kv_len``. A copy and not ``req_to_token`` itself,
        since SGLang's scheduler writes there while a CUDA graph runs.
    req_pool_indices : torch.Tensor
        [batch] int32 or int64, where each row's state lies in `RowState`.
    fields : torch.Tensor
        [NUM_FIELDS, batch] int32 on the device, from `rows.pack_rows`.
    config : LaunchConfig
        How the work is cut.
    """

    kv_indices: torch.Tensor
    req_pool_indices: torch.Tensor
    fields: torch.Tensor
    config: LaunchConfig


class RowState(NamedTuple):
    """What one layer remembers of its rows between steps; all updated in place.

    Attributes
    ----------
    next_slot : torch.Tensor
        [num_rows, victim_heads] int32, the row index that is overwritten next; victim_heads is 1
        or num_kv_heads.
    recent : torch.Tensor, optional
        [num_rows, victim_heads, recent_tokens_kept] int32 ring of the row indices written last,
        which are never chosen.
    slot_values : torch.Tensor, optional
        [num_slots * values_per_slot] float32, needed by rows that remember: the highest score of
        each slot and victim head, multiplied by `RankRule.decay` once per step since. Under
        `RankRule.novelty` a slot has two values: its score, then its similarity to newer tokens.
    row_level : torch.Tensor, optional
        [num_rows] float32, with novelty: the score below which ``level_share`` of a row's slots
        remember, followed step by step (`novelty.level`).
    row_recall : torch.Tensor, optional
        [num_rows] float32, with novelty, one tensor for all layers: the part of a row's scores that
        goes to slots which were below its level (`novelty.recall`).
    recall_pace : float
        The weight of this layer's part in the recall.
    """

    next_slot: torch.Tensor
    recent: torch.Tensor | None = None
    slot_values: torch.Tensor | None = None
    row_level: torch.Tensor | None = None
    row_recall: torch.Tensor | None = None
    recall_pace: float = 0.0
