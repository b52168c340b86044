"""Plain-PyTorch score of LongFlow (arXiv 2603.11504, eq. 6), and the decode step around it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longflow_kernels.attend_score_evict.rows import LIKENS
from longflow_kernels.novelty.level import first_level, next_level
from longflow_kernels.novelty.recall import (
    first_recall,
    next_recall,
    novelty_worth,
    recalled_part,
)
from longflow_kernels.novelty.reference import COMPARED_TOKENS, found_likeness


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
        over heads and channels, the values as the cache holds them: what `slot_score` keeps.
    """

    out: torch.Tensor
    scores: dict[int, torch.Tensor]


def attend_score_evict_reference(
    q: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    kv_indices: torch.Tensor,
    req_pool_indices: torch.Tensor,
    fields: torch.Tensor,
    next_slot: torch.Tensor,
    *,
    scaling: float,
    logit_cap: float = 0.0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    protect_sink_tokens: int = 0,
    recent: torch.Tensor | None = None,
    slot_score: torch.Tensor | None = None,
    decay: float = 0.0,
    likeness: bool = False,
    row_level: torch.Tensor | None = None,
    novelty_weight: float = 0.0,
    novelty_span: float = 1.0,
    level_share: float = 0.0,
    row_recall: torch.Tensor | None = None,
    recall_enough: float = 1.0,
    recall_pace: float = 0.0,
) -> ReferenceStep:
    """`attend_score_evict` row by row in float64; the oracle of its tests.

    Takes the same arguments and updates the cache, `next_slot`, `recent`, `slot_score`,
    `row_level` and `row_recall` in place; slow.
    """
    batch, q_heads, _ = q.shape
    kv_heads, v_head_dim = v_new.shape[1:]
    victim_heads = next_slot.shape[1]
    out = torch.zeros(batch, q_heads, v_head_dim, dtype=torch.float64, device=q.device)
    scores: dict[int, torch.Tensor] = {}
    for i in range(batch):
        kv_len, overwrites, score_offset, given, written, start, by_attention, remembers = fields[
            :, i
        ].tolist()
        if kv_len == 0:
            continue
        row = int(req_pool_indices[i])
        slots = kv_indices[start : start + kv_len].long()
        for head in range(kv_heads):
            place = int(next_slot[row, head % victim_heads]) if overwrites else kv_len - 1
            slot = int(slots[place])
            k_cache[slot, head] = (k_new[i, head].float() / k_scale).to(k_cache.dtype)
            v_cache[slot, head] = (v_new[i, head].float() / v_scale).to(v_cache.dtype)
        k = k_cache[slots].double() * k_scale
        v = v_cache[slots].double() * v_scale
        weights = _weights(q[i : i + 1].double(), k[None], scaling, logit_cap)[0]
        out[i] = torch.einsum("hgs,shd->hgd", weights, v).reshape(q_heads, v_head_dim)
        if given >= 0:
            next_slot[row] = given
        if score_offset < 0:
            continue
        contribution = weights.sum(dim=1)  # [kv_heads, kv_len]
        if not by_attention:
            contribution = contribution * v.abs().sum(dim=-1).T / v_scale
        total = contribution.view(victim_heads, -1, kv_len).sum(dim=1)
        now, past = total.clone(), torch.zeros_like(total)
        if remembers:
            assert slot_score is not None
            words = 2 if likeness else victim_heads
            stored = slot_score.view(-1, words).T[:victim_heads]  # [victim_heads, num_slots]
            for head in range(victim_heads):
                if written > 1:
                    before = stored[head, slots].double() * decay
                    before[next_slot[row, head]] = 0.0
                    past[head] = before
                    total[head] = torch.maximum(total[head], before)
                if written > 0:
                    stored[head, slots] = total[head].to(stored.dtype)
            if remembers == LIKENS:
                assert recent is not None and row_level is not None and row_recall is not None
                level, recall = row_level[row].double(), row_recall[row].double()
                if written == 0:
                    row_level[row] = first_level(total, level_share).item()
                    row_recall[row] = first_recall(recall_enough)
                else:
                    row_level[row] = next_level(level[None, None], total, level_share).item()
                    like = slot_score.view(-1, 2)[:, 1]
                    like = _likeness(like, slots, k, next_slot[row], recent[row, 0], written)
                    novelty = ((1 - like) / novelty_span).clamp(max=1)
                    total += novelty_weight * level * novelty_worth(recall, recall_enough) * novelty
                if written > 1:
                    kept = torch.zeros_like(now, dtype=torch.bool)
                    kept[:, :protect_sink_tokens] = True
                    ring = recent[row, 0].clone()
                    ring[(written - 1) % len(ring)] = next_slot[row, 0]
                    kept[:, ring.long()] = True
                    part = recalled_part(now, past, level, kept)
                    row_recall[row] = next_recall(recall, part, recall_pace).item()
        total[:, :protect_sink_tokens] = torch.inf
        if recent is not None:
            size = recent.shape[2]
            for head in range(victim_heads):
                if written == 0:
                    recent[row, head] = torch.arange(kv_len - size, kv_len)
                else:
                    recent[row, head, (written - 1) % size] = next_slot[row, head]
                total[head, recent[row, head].long()] = torch.inf
        next_slot[row] = total.argmin(dim=1).to(next_slot.dtype)
        scores[i] = total
    return ReferenceStep(out, scores)


def _likeness(
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
    found = found_likeness(k, last, written)
    if written > 1:
        before = stored[slots].double()
        before[last[0]] = 0.0
        found = torch.maximum(found, before)
    stored[slots] = found.to(stored.dtype)
    return found
