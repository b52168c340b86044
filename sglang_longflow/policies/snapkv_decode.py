# SPDX-License-Identifier: Apache-2.0
"""SnapKV, again and again while decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sglang_longflow.policies.base import Policy
from sglang_longflow.policies.rows import FullRows, Needs
from sglang_longflow.policies.windowed import (
    in_sequence,
    pooled_votes,
    to_slots,
    window_logits,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SnapKVDecode(Policy):
    """Every 128 overwrites, rank by the attention of the last 16 queries, pooled over neighbours.

    Source: arXiv 2404.14469 (a pick at the end of a prompt): softmax of the window's queries over
    the tokens before the window, summed over queries and heads, average pool of 5 in sequence
    order; the window stays. The lowest are overwritten one by one until the next pick, and can be
    read until then.

    Deviations: repeated while decoding; all heads share a victim; at most an eighth of the budget
    is picked at once; the softmax is over the tokens before the window, where released SnapKV code
    takes it over all (ranks correlate by 0.98 and more, `tests/policies/test_kvpress.py`).
    """

    name: ClassVar[str] = "snapkv-decode"
    needs: ClassVar[Needs] = Needs(slot_order=True, query_window=16, queue_tokens=128)

    pool_kernel: int = 5

    def scores(self, rows: FullRows) -> torch.Tensor:
        earlier = rows.budget_tokens - self.needs.query_window
        keys = in_sequence(rows, rows.keys)[:, :earlier]
        return to_slots(rows, pooled_votes(rows, window_logits(rows, keys), self.pool_kernel))
