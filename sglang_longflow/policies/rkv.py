# SPDX-License-Identifier: Apache-2.0
"""R-KV: important and not redundant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sglang_longflow.policies.base import Policy
from sglang_longflow.policies.rows import FullRows, Needs
from sglang_longflow.policies.windowed import (
    in_sequence,
    mean_over_window,
    to_slots,
    window_logits,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RKV(Policy):
    """Every 128 overwrites, rank by attention of the last 8 queries less similarity to other keys.

    Source: arXiv 2505.24133 and its released code. Importance: logits, the largest of a KV head's
    query heads, softmax over the tokens before the window, mean over its queries, max pool of 7 in
    sequence order. Redundancy: cosines of the keys with each other, without the newest key that is
    more than ``similar`` to each (so the newest of duplicates stays), mean, softmax. Score:
    ``importance_weight`` times the first less the rest of the second; the window stays.

    Deviations: KV heads share a victim, by the mean of their scores (the released code keeps a set
    for each head); the lowest are overwritten one by one until the next ranking, and can be read
    until then; at most an eighth of the budget is picked at once.
    """

    name: ClassVar[str] = "rkv"
    needs: ClassVar[Needs] = Needs(slot_order=True, query_window=8, queue_tokens=128)

    importance_weight: float = 0.1
    pool_kernel: int = 7
    similar: float = 0.5

    def scores(self, rows: FullRows) -> torch.Tensor:
        import torch
        import torch.nn.functional as F

        keys = in_sequence(rows, rows.keys)
        earlier = rows.budget_tokens - self.needs.query_window
        logits = window_logits(rows, keys[:, :earlier]).amax(dim=2)
        importance = mean_over_window(rows, torch.softmax(logits, dim=-1))
        importance = F.max_pool1d(importance, self.pool_kernel, 1, self.pool_kernel // 2)
        score = (
            self.importance_weight * importance
            - (1 - self.importance_weight) * self.redundancy(keys)[..., :earlier]
        )
        return to_slots(rows, score.mean(dim=1))

    def redundancy(self, keys: torch.Tensor) -> torch.Tensor:
        """Keys [n, m, num_kv_heads, head_dim] in sequence order to shares [n, num_kv_heads, m]."""
        import torch
        import torch.nn.functional as F

        unit = F.normalize(keys, dim=-1).permute(0, 2, 1, 3)
        cosine = unit @ unit.transpose(-1, -2)
        cosine.diagonal(dim1=-2, dim2=-1).zero_()
        count = cosine.shape[-1]
        place = torch.arange(1, count + 1, device=keys.device)
        last = ((cosine > self.similar) * place).amax(dim=-1, keepdim=True)  # 0 if none is
        cosine = torch.where(place == last, 0.0, cosine)
        return torch.softmax(cosine.mean(dim=-2), dim=-1)
