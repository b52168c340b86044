# SPDX-License-Identifier: Apache-2.0
"""A row's recall: the share of its attention that goes back to tokens not attended lately.

Novelty keeps such tokens at the cost of those in use. That pays if queries do go back, as in a
chain that needs an early result; in plain text few do. One number per row for all layers, because
one layer's share says too little.
"""

from __future__ import annotations

import torch

#: Weight of one step in the recall, all its layers together.
RECALL_PACE = 0.02
#: Initial recall in multiples of the threshold: novelty counts in full until the levels have
#: settled, because hardly any slot is below its level before that.
RECALL_FIRST = 2.0


def recalled_part(
    scores: torch.Tensor, past: torch.Tensor, level: torch.Tensor, protected: torch.Tensor
) -> torch.Tensor:
    """[n, 1]: the part of a step's scores that goes to slots which were below the level.

    Parameters
    ----------
    scores : torch.Tensor
        [n, slots], this step's alone.
    past : torch.Tensor
        [n, slots], the slots' remembered scores before this step, already decayed for it.
    level : torch.Tensor
        [n, 1] (`level.next_level`).
    protected : torch.Tensor
        [n, slots] bool, slots that do not count: tokens written last are always read.
    """
    cold = (past < level) & ~protected
    total = scores.sum(dim=-1, keepdim=True)
    found = torch.where(cold, scores, 0.0).sum(dim=-1, keepdim=True)
    return torch.where(total > 0, found / total, 0.0)


def first_recall(threshold: float) -> float:
    """The recall of a row that has just filled."""
    return RECALL_FIRST * threshold


def next_recall(recall: torch.Tensor, part: torch.Tensor, pace: float) -> torch.Tensor:
    """[n, 1], after a layer whose `recalled_part` is `part`; `pace` is a layer's."""
    return recall + pace * (part - recall)


def novelty_worth(recall: torch.Tensor, threshold: float) -> torch.Tensor:
    """[n, 1] from 0 to 1: the weight of novelty in a row; 1 from a recall of `threshold` on.

    The eighth power: at half of `threshold` the weight is nearly 0.
    """
    return (recall / threshold).clamp(max=1) ** 8
