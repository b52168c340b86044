# SPDX-License-Identifier: Apache-2.0
"""H2O: heavy hitters by accumulated attention, and a recent half."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sglang_longflow.policies.base import Policy
from sglang_longflow.policies.rows import FullRows, Needs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class H2O(Policy):
    """Keep the tokens that drew most attention so far, and the most recent ones.

    Source: arXiv 2306.14048. The attention of every decode step is summed for each slot, the mean
    over all heads; half of the budget (``recent_share``) are the tokens written last, which stay.

    Deviations: all heads of a layer share a victim (the paper keeps a set for each head); the sum
    begins when the row is first overwritten, not with the prompt; an over-long prompt is cut by
    SnapKV's pick as under `longflow`.
    """

    name: ClassVar[str] = "h2o"
    needs: ClassVar[Needs] = Needs(slot_score=True, slot_order=True)

    recent_share: float = 0.5

    def scores(self, rows: FullRows) -> torch.Tensor:
        late = rows.newest(int(rows.budget_tokens * self.recent_share))
        return self.heavy(rows).masked_fill(late, math.inf)

    def heavy(self, rows: FullRows) -> torch.Tensor:
        """[n, budget_tokens] float32, what ranks the tokens that are not recent."""
        return rows.memory.accumulate(rows.attention_mass)


@dataclass(frozen=True)
class H2OLast(H2O):
    """H2O as LongFlow's authors released it for comparison: the current step's attention only.

    Source: their H2O ranks by the last query's attention (its sum is kept and never used), outside
    a recent half. Deviations as for `h2o`.
    """

    name: ClassVar[str] = "h2o-last"
    needs: ClassVar[Needs] = Needs(slot_order=True)

    def heavy(self, rows: FullRows) -> torch.Tensor:
        return rows.attention_mass
