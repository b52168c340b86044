# SPDX-License-Identifier: Apache-2.0
"""LongFlow's score with a memory: what was useful to a recent query stays for a while."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from longflow_kernels import RankRule
from sglang_longflow.policies.base import Policy
from sglang_longflow.policies.rows import Needs


@dataclass(frozen=True)
class LongFlowPeak(Policy):
    """Overwrite the slot that contributed least to the outputs of the last steps.

    Own to this project. LongFlow's score (arXiv 2603.11504, eq. 6) is that of one query, and the
    next one may look elsewhere. Here a slot's score is the highest of its past ones, each counted
    ``decay`` times less for every step since: 0.95 forgets in about fifty steps. It takes one
    float32 per slot and layer. The memory begins with the row's first overwrite, 0 for every slot;
    an over-long prompt is cut by SnapKV's pick as under `longflow`.
    """

    name: ClassVar[str] = "longflow-peak"
    ranks_by: ClassVar[str | None] = "removal"
    needs: ClassVar[Needs] = Needs(slot_score=True)

    decay: float = 0.95

    @cached_property
    def rank_rule(self) -> RankRule:
        return RankRule(self.first_tokens_kept, decay=self.decay)
