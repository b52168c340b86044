# SPDX-License-Identifier: Apache-2.0
"""Plain-PyTorch score of LongFlow (arXiv 2603.11504, eq. 6), and the decode step around it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longflow_kernels.attend_score_evict.arguments import DecodeStep, KVCache, RowState
from longflow_kernels.attend_score_evict.rows import USES_NOVELTY
from longflow_kernels.attend_score_evict.rule import RankRule
from longflow_kernels.limits import COMPARED_TOKENS
from longflow_kernels.novelty.level import first_level, next_level
from longflow_kernels.novelty.recall import (
    first_recall,
    next_recall,
    novelty_worth,
    recalled_part,
)
from longflow_kernels.novelty.reference import found_similarity


def attention_weights(
    q: torch.Tensor, k: torch.Tensor, scaling: float, logit_cap: float = 0.0
) -> torch.Tensor:
    """Softmax of one query per row over all slots of the row.

    Parameters
    ----------
    q : torch.Tensor
        [n, num_q_heads, head_dim], after RoPE.
    k : torch.Tensor
        [n, kv_len, num_kv_heads, head_dim], after RoPE; every slot is attended.
    scaling : float
        Factor on the logits.
    logit_cap : float
        Soft cap ``cap * tanh(logit / cap)``; 0 is none.

    Returns
    -------
    torch.Tensor
        [n, num_kv_heads, group, kv_len] float32; query head ``h * group + g`` is at ``[:, h, g]``.
    """
    return _weights(q.float(), k.float(), scaling, logit_cap)


def _weights(q: torch.Tensor, k: torch.Tensor, scaling: float, logit_cap: float) -> torch.Tensor:
    """`attention_weights` in the dtype of its arguments."""
    rows, q_heads, head_dim = q.shape
    kv_heads = k.shape[2]
    if q_heads % kv_heads:
        raise ValueError(f"num_q_heads={q_heads} is not a multiple of num_kv_heads={kv_heads}")
    grouped = q.view(rows, kv_heads, q_heads // kv_heads, head_dim)
    logits = torch.matmul(grouped, k.permute(0, 2, 3, 1)) * scaling
    if logit_cap > 0:
        logits = logit_cap * torch.tanh(logits / logit_cap)
    return torch.softmax(logits, dim=-1)


def removal_scores(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, logit_cap: float = 0.0
) -> torch.Tensor:
    """Mean over query heads and channels of ``|alpha_i * v_i|`` for every slot of every row.

    The slot with the lowest score is the one whose removal changes the attention output least
    under the paper's approximations.

    Parameters
    ----------
    q, k, scaling, logit_cap
        As in `attention_weights`.
    v : torch.Tensor
        [n, kv_len, num_kv_heads, v_head_dim].

    Returns
    -------
    torch.Tensor
        [n, kv_len] float32, all >= 0; lowest is least useful.
    """
    weights = attention_weights(q, k, scaling, logit_cap).sum(dim=2)  # [n, kv_heads, kv_len]
    norms = v.float().abs().sum(dim=-1).permute(0, 2, 1)  # [n, kv_heads, kv_len]
    return (weights * norms).sum(dim=1) / (q.shape[1] * v.shape[-1])


def attention_mass(
    q: torch.Tensor, k: torch.Tensor, scaling: float, logit_cap: float = 0.0
) -> torch.Tensor:
    """Mean over query heads of the attention that every slot of every row gets.

    Parameters
    ----------
    q, k, scaling, logit_cap
        As in `attention_weights`.

    Returns
    -------
    torch.Tensor
        [n, kv_len] float32; a row sums to 1.
    """
    return attention_weights(q, k, scaling, logit_cap).mean(dim=(1, 2))


@dataclass(frozen=True)
class ReferenceStep:
    """What `attend_score_evict_reference` found, all float64.

    Attributes
    ----------
    out : torch.Tensor
        [batch, num_q_heads, v_head_dim]; zero for padded rows.
    scores : dict of int to torch.Tensor
        For each scored row of the batch: [victim_heads, kv_len], protected slots at infinity. Sums
        over heads and channels, the values as the cache holds them, as `RowState.slot_values` keeps
        them.
    """

    out: torch.Tensor
    scores: dict[int, torch.Tensor]


def attend_score_evict_reference(
    q: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    cache: KVCache,
    step: DecodeStep,
    state: RowState,
    rule: RankRule,
    *,
    scaling: float,
    logit_cap: float = 0.0,
) -> ReferenceStep:
    """`attend_score_evict` row by row in float64; the oracle of its tests.

    Takes the same arguments but the workspace, and updates `cache` and `state` in place; slow.
    """
    batch, q_heads, _ = q.shape
    kv_heads, v_head_dim = v_new.shape[1:]
    next_slot = state.next_slot
    victim_heads = next_slot.shape[1]
    out = torch.zeros(batch, q_heads, v_head_dim, dtype=torch.float64, device=q.device)
    scores: dict[int, torch.Tensor] = {}
    for i in range(batch):
        kv_len, overwrites, score_offset, given, written, start, by_attention, remembers = (
            step.fields[:, i].tolist()
        )
        if kv_len == 0:
            continue
        row = int(step.req_pool_indices[i])
        slots = step.kv_indices[start : start + kv_len].long()
        for head in range(kv_heads):
            place = int(next_slot[row, head % victim_heads]) if overwrites else kv_len - 1
            slot = int(slots[place])
            cache.k[slot, head] = (k_new[i, head].float() / cache.k_scale).to(cache.k.dtype)
            cache.v[slot, head] = (v_new[i, head].float() / cache.v_scale).to(cache.v.dtype)
        k = cache.k[slots].double() * cache.k_scale
        v = cache.v[slots].double() * cache.v_scale
        weights = _weights(q[i : i + 1].double(), k[None], scaling, logit_cap)[0]
        out[i] = torch.einsum("hgs,shd->hgd", weights, v).reshape(q_heads, v_head_dim)
        if given >= 0:
            next_slot[row] = given
        if score_offset < 0:
            continue
        contribution = weights.sum(dim=1)  # [kv_heads, kv_len]
        if not by_attention:
            contribution = contribution * v.abs().sum(dim=-1).T / cache.v_scale
        now = contribution.view(victim_heads, -1, kv_len).sum(dim=1)
        total, past = now.clone(), torch.zeros_like(now)
        if remembers:
            past = _past_scores(state, rule, row, slots, written)
            total = torch.maximum(now, past)
            if written > 0:
                stored = _scores_of(state, rule)
                stored[:, slots] = total.to(stored.dtype)
        if remembers == USES_NOVELTY:
            total += _novelty_of_row(state, rule, row, slots, k, now, past, total, written)
        total[:, : rule.first_tokens_kept] = torch.inf
        if state.recent is not None:
            size = state.recent.shape[2]
            for head in range(victim_heads):
                ring = state.recent[row, head]
                if written == 0:
                    ring[:] = torch.arange(kv_len - size, kv_len)
                else:
                    ring[(written - 1) % size] = next_slot[row, head]
                total[head, ring.long()] = torch.inf
        next_slot[row] = total.argmin(dim=1).to(next_slot.dtype)
        scores[i] = total
    return ReferenceStep(out, scores)


def _scores_of(state: RowState, rule: RankRule) -> torch.Tensor:
    """[victim_heads, num_slots], a view of what the slots remember."""
    assert state.slot_values is not None
    victim_heads = state.next_slot.shape[1]
    return state.slot_values.view(-1, rule.values_per_slot(victim_heads)).T[:victim_heads]


def _past_scores(
    state: RowState, rule: RankRule, row: int, slots: torch.Tensor, written: int
) -> torch.Tensor:
    """[victim_heads, kv_len] float64: what a row's slots remember, decayed; 0 for a new token."""
    past = _scores_of(state, rule)[:, slots].double() * rule.decay
    if written <= 1:
        return torch.zeros_like(past)
    for head, newest in enumerate(state.next_slot[row].tolist()):
        past[head, newest] = 0.0
    return past


def _novelty_of_row(
    state: RowState,
    rule: RankRule,
    row: int,
    slots: torch.Tensor,
    k: torch.Tensor,
    now: torch.Tensor,
    past: torch.Tensor,
    total: torch.Tensor,
    written: int,
) -> torch.Tensor:
    """[1, kv_len]: what novelty adds to a row's scores; moves its level and its recall on.

    `now`, `past` and `total` [1, kv_len] are the scores of this step, those remembered before it,
    and those remembered after it.
    """
    novelty, level_of, recall_of = rule.novelty, state.row_level, state.row_recall
    assert novelty is not None and level_of is not None and recall_of is not None
    assert state.recent is not None and state.slot_values is not None
    if written == 0:
        level_of[row] = first_level(total, novelty.level_share).item()
        recall_of[row] = first_recall(novelty.recall_threshold)
        return torch.zeros_like(total)
    level, recall = level_of[row].double(), recall_of[row].double()
    level_of[row] = next_level(level[None, None], total, novelty.level_share).item()
    ring = state.recent[row, 0].clone()
    stored = state.slot_values.view(-1, 2)[:, 1]
    newest = state.next_slot[row]
    similarity = _similarity(stored, slots, k, newest, ring, written)
    if written > 1:
        protected = torch.zeros_like(now, dtype=torch.bool)
        protected[:, : rule.first_tokens_kept] = True
        ring[(written - 1) % len(ring)] = newest[0]
        protected[:, ring.long()] = True
        part = recalled_part(now, past, level, protected)
        recall_of[row] = next_recall(recall, part, state.recall_pace).item()
    worth = novelty_worth(recall, novelty.recall_threshold)
    return novelty.weight * level * worth * ((1 - similarity) / novelty.span).clamp(max=1)


def _similarity(
    stored: torch.Tensor,
    slots: torch.Tensor,
    k: torch.Tensor,
    newest: torch.Tensor,
    recent: torch.Tensor,
    written: int,
) -> torch.Tensor:
    """[kv_len] of a row's tokens to newer ones, brought up to date in `stored` [num_slots]."""
    ring = (written - 1 - torch.arange(1, COMPARED_TOKENS)) % len(recent)
    last = torch.cat([newest, recent[ring]]).long()
    found = found_similarity(k, last, written)
    if written > 1:
        before = stored[slots].double()
        before[last[0]] = 0.0
        found = torch.maximum(found, before)
    stored[slots] = found.to(stored.dtype)
    return found
