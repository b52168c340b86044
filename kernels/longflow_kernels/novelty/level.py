# SPDX-License-Identifier: Apache-2.0
"""A row's level: a running quantile of its slots' remembered scores.

Novelty is weighed in levels. The mean score would not do: if a row's attention goes to few tokens,
nearly all slots are below the mean, and novelty would decide everything.
"""

from __future__ import annotations

import torch

#: Step size: the level changes by this fraction of itself times (wanted - found share below it).
LEVEL_PACE = 0.1
#: At 0 it would stay there.
LOWEST_LEVEL = 1e-30


def first_level(scores: torch.Tensor, share: float) -> torch.Tensor:
    """[n, 1], of a row that has just filled, from that step's scores [n, slots]."""
    return (share * scores.mean(dim=-1, keepdim=True)).clamp(min=LOWEST_LEVEL)


def next_level(level: torch.Tensor, remembered: torch.Tensor, share: float) -> torch.Tensor:
    """[n, 1], from the level [n, 1] and the slots' remembered scores [n, slots] in this step."""
    below = (remembered < level).to(level.dtype).mean(dim=-1, keepdim=True)
    return (level * (1 + LEVEL_PACE * (share - below))).clamp(min=LOWEST_LEVEL)
