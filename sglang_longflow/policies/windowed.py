# SPDX-License-Identifier: Apache-2.0
"""What policies share that look at the attention of the last few queries."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sglang_longflow.policies.rows import FullRows

if TYPE_CHECKING:
    import torch


def in_sequence(rows: FullRows, tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` [n, budget_tokens, ...] with its slots in the order their tokens were written."""
    index = rows.sequence
    shape = index.shape + (1,) * (tensor.dim() - 2)
    return tensor.gather(1, index.view(shape).expand_as(tensor))


def to_slots(rows: FullRows, earlier: torch.Tensor) -> torch.Tensor:
    """Scores [n, m] of the m earliest tokens back at their slots; the later ones stay (inf)."""
    scores = earlier.new_full((earlier.shape[0], rows.budget_tokens), math.inf)
    return scores.scatter(1, rows.sequence[:, : earlier.shape[1]], earlier)


def window_logits(rows: FullRows, keys: torch.Tensor) -> torch.Tensor:
    """Logits of the remembered queries over `keys` [n, m, num_kv_heads, head_dim].

    Returns [n, num_kv_heads, group, window, m] float32.
    """
    import torch

    queries, _ = rows.memory.queries()
    n, window, num_q_heads, head_dim = queries.shape
    kv_heads = keys.shape[2]
    grouped = queries.view(n, window, kv_heads, num_q_heads // kv_heads, head_dim)
    grouped = grouped.permute(0, 2, 3, 1, 4).reshape(n, kv_heads, -1, head_dim)
    logits = grouped @ keys.permute(0, 2, 3, 1) * rows.scaling
    if rows.logit_cap > 0:
        logits = rows.logit_cap * torch.tanh(logits / rows.logit_cap)
    return logits.view(n, kv_heads, -1, window, keys.shape[1])


def mean_over_window(rows: FullRows, weights: torch.Tensor) -> torch.Tensor:
    """Mean over the queries that exist; weights [n, ..., window, m] to [n, ..., m]."""
    _, seen = rows.memory.queries()
    share = seen / seen.sum(dim=1, keepdim=True)
    shape = (share.shape[0],) + (1,) * (weights.dim() - 3) + (share.shape[1], 1)
    return (weights * share.view(shape)).sum(dim=-2)


def pooled_votes(rows: FullRows, logits: torch.Tensor, pool_kernel: int) -> torch.Tensor:
    """SnapKV's votes (arXiv 2404.14469) for the earliest m tokens: [n, m] from `window_logits`.

    Softmax, mean over queries and heads, average pool over neighbours in the sequence.
    """
    import torch
    import torch.nn.functional as F

    votes = mean_over_window(rows, torch.softmax(logits, dim=-1)).mean(dim=(1, 2))
    return F.avg_pool1d(votes[:, None], pool_kernel, 1, pool_kernel // 2)[:, 0]
