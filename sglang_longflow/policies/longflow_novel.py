"""LongFlow's score remembered for a while, and more for a token that nothing newer is like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from longflow_kernels import (
    COMPARED_TOKENS,
    compares,
    first_recall,
    found_likeness,
    novelty_worth,
    recalled_part,
)
from sglang_longflow.policies.base import Policy
from sglang_longflow.policies.rows import FullRows, Needs


@dataclass(frozen=True)
class LongFlowNovel(Policy):
    """Overwrite what the last queries did not use and a newer token stands for.

    Own to this project. A slot's score is ``peak + weight * level * worth * novelty``:

    - ``peak``: the highest of its LongFlow scores (arXiv 2603.11504, eq. 6), each counted ``decay``
      times less for every step since, as under `longflow-peak`;
    - ``level``: what about ``share`` of the row's slots have as their peak. So novelty
      decides among those that are read least, about as many in any row, however its attention
      is spread; it is followed step by step (`longflow_kernels.next_level`);
    - ``worth``: ``min(1, recall / enough) ** 8``. The recall is the part of the row's scores that
      goes to slots whose peak was below the level: a mean of some fifty steps over all layers
      (`longflow_kernels.next_recall`). So novelty counts where queries do go back to what they had
      not looked at, as in chains that need results of long ago, and in plain text hardly;
    - ``novelty``: ``min(1, (1 - likeness) / (1 - alike_from))``;
    - ``likeness``: the largest cosine similarity of its key to the key of a token written after it,
      over all KV heads together, 0 where all are below. Only the quarter of a key's channels counts
      that RoPE turns least: those say what a token is, the others where it stands. In a chain that
      works something out again and again, the older of two like tokens is the one that is out of
      date.

    So a token that a query looked at lately stays, whatever it is like; one that none has looked at
    for some fifty steps stays while nothing newer is like it. The first ``first_tokens`` and the
    last ``recent_tokens`` stay. Both memories begin with the row's first overwrite, when what
    filled the row is compared with each other; from then on the last 16 tokens are compared with
    all at every sixteenth overwrite, while they still are recent. They take two float32 a slot and
    layer, the level one a row and layer, the recall one a row. RoPE is taken to turn channel i with
    i + head_dim / 2 over the whole head, as in Llama and Qwen. An over-long prompt is cut by
    SnapKV's pick as under `longflow`.
    """

    name: ClassVar[str] = "longflow-novel"
    ranks_by: ClassVar[str | None] = "removal"
    needs: ClassVar[Needs] = Needs(slot_score=True, slot_likeness=True)

    decay: float = 0.95
    weight: float = 16.0
    share: float = 0.2
    enough: float = 0.04
    alike_from: float = 0.9
    first_tokens: int = 4
    recent_tokens: int = COMPARED_TOKENS

    @property
    def peak_decay(self) -> float:
        return self.decay

    @property
    def first_tokens_kept(self) -> int:
        return max(self.protect_sink_tokens, self.first_tokens)

    @property
    def recent_tokens_kept(self) -> int:
        return max(self.protect_recent_tokens, self.recent_tokens)

    @property
    def novelty_weight(self) -> float:
        return self.weight

    @property
    def level_share(self) -> float:
        return self.share

    @property
    def recall_enough(self) -> float:
        return self.enough

    @property
    def novelty_span(self) -> float:
        return 1 - self.alike_from

    def scores(self, rows: FullRows) -> torch.Tensor:
        likeness = rows.likest(self._likeness(rows))
        novelty = ((1 - likeness) / self.novelty_span).clamp(max=1)
        past = rows.past(self.peak_decay)
        remembered = super().scores(rows)
        level = rows.level(remembered, self.level_share)
        part = recalled_part(rows.removal_scores, past, level, rows.kept(self.first_tokens_kept))
        worth = novelty_worth(
            rows.recall(part, first_recall(self.recall_enough)), self.recall_enough
        )
        return remembered + self.novelty_weight * level * worth * novelty

    @staticmethod
    def _likeness(rows: FullRows) -> torch.Tensor:
        """[n, budget_tokens] that this step adds."""
        last = rows.written_last(COMPARED_TOKENS)
        found = [
            found_likeness(rows.keys[row], last[row], done)
            if compares(done)  # else the row's keys need not be read
            else last.new_zeros(rows.budget_tokens, dtype=torch.float32)
            for row, done in enumerate(rows.overwrites)
        ]
        return torch.stack(found)
