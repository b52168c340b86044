# SPDX-License-Identifier: Apache-2.0
"""A row's recall: what part of its attention goes back to tokens it had not looked at lately.

Novelty keeps such tokens, at the cost of those that are in use. That pays where queries do go back,
as those of a chain that needs a result of long ago; in plain text few do. One number per row, of
all layers together: a layer alone says too little.
"""

from __future__ import annotations

import torch

#: What one step counts in the recall, all its layers together.
RECALL_PACE = 0.02
#: What it begins at, times the threshold: until levels have settled, hardly a slot is below one,
#: and novelty is to count in a row before it is known that it need not.
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
        [n, slots], what the slots remembered before, counted less for this step.
    level : torch.Tensor
        [n, 1] (`level.next_level`).
    protected : torch.Tensor
        [n, slots] bool, which do not count: what was written last is always read.
    """
    cold = (past < level) & ~protected
    total = scores.sum(dim=-1, keepdim=True)
    found = torch.where(cold, scores, 0.0).sum(dim=-1, keepdim=True)
    return torch.where(total > 0, found / total, 0.0)


def first_recall(threshold: float) -> float:
    """What the recall of a row begins at when the row fills."""
    return RECALL_FIRST * threshold


def next_recall(recall: torch.Tensor, part: torch.Tensor, pace: float) -> torch.Tensor:
    """[n, 1], after a layer whose `recalled_part` is `part`; `pace` is a layer's."""
    return recall + pace * (part - recall)


def novelty_worth(recall: torch.Tensor, threshold: float) -> torch.Tensor:
    """[n, 1] from 0 to 1: what novelty counts in a row; all of it from a recall of `threshold` on.

    The eighth power: at half of `threshold` hardly anything is left.
    """
    return (recall / threshold).clamp(max=1) ** 8
