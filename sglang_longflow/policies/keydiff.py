# SPDX-License-Identifier: Apache-2.0
"""KeyDiff: keep the keys that differ most from the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sglang_longflow.policies.base import Policy
from sglang_longflow.policies.rows import FullRows

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class KeyDiff(Policy):
    """Overwrite the slot whose key is most similar to the mean direction of the row's keys.

    Source: arXiv 2504.15364: score ``-cos(k_i, mean of k_j / |k_j|)`` of the keys as cached (after
    RoPE); no attention is needed. Deviations: KV heads share a victim, by the mean of their scores;
    one victim per step, where the paper drops a block of 128; an over-long prompt is cut by
    SnapKV's pick as under `longflow`.
    """

    name: ClassVar[str] = "keydiff"

    def scores(self, rows: FullRows) -> torch.Tensor:
        import torch.nn.functional as F

        unit = F.normalize(rows.keys, dim=-1)
        anchor = unit.mean(dim=1, keepdim=True)
        return -F.cosine_similarity(unit, anchor, dim=-1).mean(dim=-1)
