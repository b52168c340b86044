# SPDX-License-Identifier: Apache-2.0
"""What a policy is given and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import longflow_kernels as kernels
from longflow_kernels import RankRule
from sglang_longflow.policies.rows import FullRows, Needs

if TYPE_CHECKING:  # settings are judged by policies without it; what computes imports it
    import torch


@dataclass(frozen=True)
class PromptEnd:
    """A prompt that must be cut, in one or several layers.

    Attributes
    ----------
    prompt_tokens : int
    keep_tokens : int
        How many tokens may stay: budget - 1.
    scores : torch.Tensor or None
        [num_layers, prompt_tokens - window] float32: in each layer the SnapKV scores of the tokens
        before the last ``Policy.prompt_window_tokens`` (`longflow_kernels.prompt_scores`); None
        where the policy has no such window.
    device : torch.device
    """

    prompt_tokens: int
    keep_tokens: int
    scores: torch.Tensor | None
    device: torch.device


@dataclass(frozen=True)
class Policy:
    """Picks the slot that a full row overwrites next. Fields are the hyper-parameters.

    Attributes
    ----------
    protect_sink_tokens : int
        The first tokens of the sequence are never overwritten; they sit at row indices
        ``0 .. protect_sink_tokens - 1``.
    protect_recent_tokens : int
        The tokens written last are never overwritten.
    """

    name: ClassVar[str]
    #: The score that the fused kernel ranks by: `FullRows.removal_scores` ("removal") or
    #: `FullRows.attention_mass` ("attention"). The victim is the unprotected slot with the lowest.
    #: Under a `rank_rule` with a decay the score is the decayed peak over steps, plus novelty.
    ranks_by: ClassVar[str | None] = None
    needs: ClassVar[Needs] = Needs()
    #: Queries at the end of a prompt that `prompt_keep` looks at; they are always recomputed,
    #: so a prefix hit ends before them.
    prompt_window_tokens: ClassVar[int] = 32

    protect_sink_tokens: int = 0
    protect_recent_tokens: int = 0

    @property
    def min_budget_tokens(self) -> int:
        """Smallest budget with which the policy still has a choice."""
        cut = self.prompt_window_tokens + self.first_tokens_kept + 2
        decode = self.first_tokens_kept + self.recent_tokens_kept + 2
        window = self.needs.query_window
        return max(cut, decode, 2 * (window + decode - 2) if window else 0)

    @cached_property
    def rank_rule(self) -> RankRule:
        """How the fused kernel ranks the slots of this policy's rows, beside `ranks_by`."""
        return RankRule(self.first_tokens_kept)

    @property
    def first_tokens_kept(self) -> int:
        """Tokens at the beginning that are never overwritten."""
        return self.protect_sink_tokens

    @property
    def recent_tokens_kept(self) -> int:
        """Tokens written last that are never overwritten."""
        return self.protect_recent_tokens

    def known_victim(self, budget_tokens: int, overwrites: int) -> int | None:
        """Row index that a row overwrites next if lengths alone decide it, else None."""
        return None

    @property
    def is_fused(self) -> bool:
        """Whether the fused kernel can pick its victims."""
        return self.ranks_by is not None or self.known_victim(1 << 20, 0) is not None

    def interval_tokens(self, budget_tokens: int) -> int:
        """Overwrites between two picks, which is also the number of victims per pick.

        At most an eighth of the budget, so that one pick replaces little of a small row.
        """
        return max(1, min(self.needs.queue_tokens, budget_tokens // 8))

    def is_due(self, budget_tokens: int, overwrites: int) -> bool:
        """Whether a row ranks its slots now (else it takes the next victim of its queue)."""
        return overwrites % self.interval_tokens(budget_tokens) == 0

    def scores(self, rows: FullRows) -> torch.Tensor:
        """[n, budget_tokens] float32: the lowest go first; infinite ones stay."""
        found = rows.attention_mass if self.ranks_by == "attention" else rows.removal_scores
        decay = self.rank_rule.decay
        return rows.memory.accumulate(found, decay, peak=True) if decay else found

    def victims(self, rows: FullRows) -> torch.Tensor:
        """Row index [n] int64 of the slot each row overwrites with its next token.

        The rows are all due (`is_due`), or none is.
        """
        import torch

        picks = [self.known_victim(rows.budget_tokens, done) for done in rows.overwrites]
        if picks[0] is not None:
            return torch.tensor(picks, dtype=torch.int64).to(rows.device, non_blocking=True)
        interval = self.interval_tokens(rows.budget_tokens)
        if not self.is_due(rows.budget_tokens, rows.overwrites[0]):
            return rows.memory.queued(interval)
        queue = rows.lowest(self.scores(rows), self.first_tokens_kept, interval)
        if interval > 1:
            rows.memory.store_queue(queue)
        return queue[:, 0]

    def prompt_keep(self, prompt: PromptEnd) -> torch.Tensor:
        """Prompt positions int64, ascending, that stay resident.

        [num_layers, keep_tokens], or [keep_tokens] where they are the same in all layers. SnapKV's
        pick unless a policy has its own (arXiv 2404.14469): the window, the first tokens that stay,
        and the highest scores of the rest.
        """
        import torch

        window = self.prompt_window_tokens
        assert prompt.scores is not None  # as there is a window
        earlier = kernels.top_positions(
            prompt.scores, prompt.keep_tokens - window, always_first=self.first_tokens_kept
        )
        last = torch.arange(
            prompt.prompt_tokens - window, prompt.prompt_tokens, device=prompt.device
        )
        return torch.cat([earlier, last.expand(earlier.shape[0], -1)], dim=1)
