"""LongFlow's score remembered, and less for a token that a newer one has made redundant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from sglang_longflow.policies.base import Policy
from sglang_longflow.policies.rows import FullRows, Needs


@dataclass(frozen=True)
class LongFlowNovel(Policy):
    """Overwrite what was of little use to the last queries, or what a newer token stands for.

    Own to this project. A slot's score is ``peak * (1 - likeness) ** power``:

    - ``peak``: the highest of its LongFlow scores (arXiv 2603.11504, eq. 6), each counted ``decay``
      times less for every step since: 0.99 forgets in about two hundred steps;
    - ``likeness``: the largest cosine similarity of its key to the key of a token written after it,
      mean over KV heads, 0 where all are below. Only the quarter of a key's channels counts that
      RoPE turns least: those say what a token is, the others where it stands. In a chain that works
      something out again and again, the older of two like tokens is the one that is out of date.

    The first ``first_tokens`` stay, and of the last ones ``recent_tokens``, at most a quarter of
    the budget. Both memories begin with the row's first overwrite; what filled the row is compared
    with each other once. They take two float32 a slot and layer. RoPE is taken to turn channel i
    with i + head_dim / 2 over the whole head, as in Llama and Qwen. An over-long prompt is cut by
    SnapKV's pick as under `longflow`.
    """

    name: ClassVar[str] = "longflow-novel"
    needs: ClassVar[Needs] = Needs(slot_score=True, slot_likeness=True, slot_order=True)

    decay: float = 0.99
    power: float = 2.0
    first_tokens: int = 4
    recent_tokens: int = 64

    @property
    def first_tokens_kept(self) -> int:
        return max(self.protect_sink_tokens, self.first_tokens)

    def scores(self, rows: FullRows) -> torch.Tensor:
        peak = rows.accumulate(rows.removal_scores, self.decay, peak=True)
        likeness = rows.likest(self._likeness(rows)).clamp(max=1.0)
        late = rows.newest(min(self.recent_tokens, rows.budget_tokens // 4))
        return (peak * (1 - likeness) ** self.power).masked_fill(late, torch.inf)

    def _likeness(self, rows: FullRows) -> torch.Tensor:
        """[n, budget_tokens]: of each token to the one written last; of those in a row without a
        history to any that was written after it."""
        size = rows.keys.shape[-1]
        slow = size // 2 * 3 // 4
        channels = [*range(slow, size // 2), *range(size // 2 + slow, size)]
        unit = F.normalize(rows.keys[..., channels], dim=-1)
        newest = rows.sequence[:, -1]
        last = unit[torch.arange(len(newest), device=unit.device), newest]
        likeness = torch.einsum("nbhd,nhd->nb", unit, last) / unit.shape[2]
        for row, overwrites in enumerate(rows.overwrites):
            if overwrites <= 1:
                likeness[row] = self._to_any_newer(unit[row], rows.order[row])
        likeness = likeness.scatter(1, newest[:, None], 0.0)
        return likeness.clamp(min=0.0)

    @staticmethod
    def _to_any_newer(unit: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """[budget_tokens] of one row: keys [budget_tokens, num_kv_heads, channels], and their age.

        In parts: a long row's products do not fit memory at once.
        """
        found = []
        for part in torch.arange(len(order), device=unit.device).split(512):
            products = torch.einsum("ihd,jhd->ij", unit[part], unit) / unit.shape[1]
            older = order[part, None] >= order[None, :]
            found.append(products.masked_fill(older, 0.0).amax(dim=1))
        return torch.cat(found)
