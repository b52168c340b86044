# SPDX-License-Identifier: Apache-2.0
"""LongFlow's score remembered for a while, and more for a token unlike all newer ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import longflow_kernels as kernels
from longflow_kernels import COMPARED_TOKENS, Novelty, RankRule
from sglang_longflow.policies.base import Policy
from sglang_longflow.policies.rows import FullRows, Needs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LongFlowNovel(Policy):
    """Overwrite what the last queries did not use and a newer token stands for.

    Own to this project. A slot's score is ``peak + weight * level * worth * novelty``:

    - ``peak``: the highest of its LongFlow scores (arXiv 2603.11504, eq. 6), each counted ``decay``
      times less for every step since, as under `longflow-peak`;
    - ``level``: what about ``level_share`` of the row's slots have as their peak. So novelty
      decides among those that are read least, about as many in any row, however its attention
      is spread; it is followed step by step (`longflow_kernels.next_level`);
    - ``worth``: ``min(1, recall / recall_threshold) ** 8``. The recall is the part of the row's
      scores that goes to slots whose peak was below the level: a mean of some fifty steps over all
      layers (`longflow_kernels.next_recall`). So novelty counts where queries do go back to what
      they had not looked at, as in chains that need results of long ago, and hardly in plain text;
    - ``novelty``: ``min(1, (1 - similarity) / (1 - similarity_threshold))``;
    - ``similarity``: the largest cosine similarity of its key to the key of a token written after
      it, over all KV heads together, at least 0. Only the quarter of a key's channels
      counts that RoPE turns least: those say what a token is, the others where it stands. In a
      chain that works something out again and again, the older of two similar tokens is the one
      that is out of date.

    So a token that a query looked at lately stays, whatever newer ones there are; one that none has
    looked at for some fifty steps stays while nothing newer is similar to it. The first
    ``first_tokens`` and the last ``recent_tokens`` stay. Both memories begin with the row's first
    overwrite, when what filled the row is compared with each other; from then on the last 16 tokens
    are compared with all at every sixteenth overwrite, while they still are recent. They take two
    float32 per slot and layer, the level one per row and layer, the recall one per row. RoPE is
    taken to turn channel i with i + head_dim / 2 over the whole head, as in Llama and Qwen. An
    over-long prompt is cut by SnapKV's pick as under `longflow`.
    """

    name: ClassVar[str] = "longflow-novel"
    ranks_by: ClassVar[str | None] = "removal"
    needs: ClassVar[Needs] = Needs(slot_score=True, slot_similarity=True)

    decay: float = 0.95
    weight: float = 16.0
    level_share: float = 0.2
    recall_threshold: float = 0.04
    similarity_threshold: float = 0.9
    first_tokens: int = 4
    recent_tokens: int = COMPARED_TOKENS

    @property
    def first_tokens_kept(self) -> int:
        return max(self.protect_sink_tokens, self.first_tokens)

    @property
    def recent_tokens_kept(self) -> int:
        return max(self.protect_recent_tokens, self.recent_tokens)

    @cached_property
    def rank_rule(self) -> RankRule:
        novelty = Novelty(
            weight=self.weight,
            level_share=self.level_share,
            recall_threshold=self.recall_threshold,
            similarity_threshold=self.similarity_threshold,
        )
        return RankRule(self.first_tokens_kept, self.decay, novelty)

    def scores(self, rows: FullRows) -> torch.Tensor:
        rule, memory = self.rank_rule, rows.memory
        novelty = rule.novelty
        assert novelty is not None
        similarity = memory.max_similarity(self._similarity(rows))
        newness = ((1 - similarity) / novelty.span).clamp(max=1)
        past = memory.past(rule.decay)
        remembered = super().scores(rows)
        level = memory.level(remembered, novelty.level_share)
        protected = rows.protected(rule.first_tokens_kept)
        part = kernels.recalled_part(rows.removal_scores, past, level, protected)
        recall = memory.recall(part, kernels.first_recall(novelty.recall_threshold))
        worth = kernels.novelty_worth(recall, novelty.recall_threshold)
        return remembered + novelty.weight * level * worth * newness

    @staticmethod
    def _similarity(rows: FullRows) -> torch.Tensor:
        """[n, budget_tokens] that this step adds."""
        import torch

        last = rows.written_last(COMPARED_TOKENS)
        found = [
            kernels.found_similarity(rows.keys[row], last[row], done)
            if kernels.compares(done)  # else the row's keys need not be read
            else last.new_zeros(rows.budget_tokens, dtype=torch.float32)
            for row, done in enumerate(rows.overwrites)
        ]
        return torch.stack(found)
