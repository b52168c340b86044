# SPDX-License-Identifier: Apache-2.0
"""A row's level: what a share of its slots have remembered less than, followed step by step.

A slot's novelty is worth some of it. The mean score would not do: in rows whose attention goes to
few tokens nearly all slots are below it, and novelty would decide everything.
"""

from __future__ import annotations

import torch

#: The level changes by this part of itself, times what the share of slots below it is too small.
LEVEL_PACE = 0.1
#: At 0 it would stay there.
LOWEST_LEVEL = 1e-30


def first_level(scores: torch.Tensor, share: float) -> torch.Tensor:
    """[n, 1], before a row's first overwrite; scores [n, slots] of that step."""
    return (share * scores.mean(dim=-1, keepdim=True)).clamp(min=LOWEST_LEVEL)


def next_level(level: torch.Tensor, remembered: torch.Tensor, share: float) -> torch.Tensor:
    """[n, 1], from the level [n, 1] and what the slots remember [n, slots] in this step."""
    below = (remembered < level).to(level.dtype).mean(dim=-1, keepdim=True)
    return (level * (1 + LEVEL_PACE * (share - below))).clamp(min=LOWEST_LEVEL)
