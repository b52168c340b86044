# SPDX-License-Identifier: Apache-2.0
"""RPC, reasoning path compression, in a fixed budget."""

from __future__ import annotations

import math
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
class RPC(Policy):
    """Every 1,024 overwrites, rank the generated tokens by the attention of the last 32 queries.

    Source: arXiv 2505.13866. Softmax of the selector queries over the generated tokens before
    them, mean over queries and heads, average pool of 7 in sequence order. The prompt stays, and so
    do the selectors.

    Deviations: the paper's budget grows with the answer, here it is fixed; the prompt is ranked
    like the rest where it leaves fewer than a quarter of the row; the lowest are overwritten one
    by one until the next ranking, and can be read until then; at most an eighth of the budget is
    picked at once; the softmax is over the tokens before the window, where released SnapKV code
    takes it over all (ranks correlate by 0.98 and more, `tests/policies/test_kvpress.py`).
    """

    name: ClassVar[str] = "rpc"
    needs: ClassVar[Needs] = Needs(slot_order=True, query_window=32, queue_tokens=1024)

    pool_kernel: int = 7

    def scores(self, rows: FullRows) -> torch.Tensor:
        import torch

        budget = rows.budget_tokens
        earlier = budget - self.needs.query_window
        kept = [n if earlier - n >= budget // 4 else 0 for n in rows.prompt_tokens]
        prompt = torch.tensor(kept).to(rows.device, non_blocking=True)
        generated = torch.arange(earlier, device=rows.device) >= prompt[:, None]
        keys = in_sequence(rows, rows.keys)[:, :earlier]
        logits = window_logits(rows, keys)
        logits = logits.masked_fill(~generated[:, None, None, None], -math.inf)
        pooled = pooled_votes(rows, logits, self.pool_kernel)
        return to_slots(rows, pooled.masked_fill(~generated, math.inf))
