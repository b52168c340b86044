"""What a policy is given and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from longflow_kernels import top_positions


class FullRows:
    """Full rows of one layer that share a policy and a budget, at the end of a decode step.

    Attributes
    ----------
    budget_tokens : int
        Slots of each row, all of them taken.
    overwrites : list of int
        For each row: how many tokens it has overwritten so far; 0 where it filled in this step.
    recent : torch.Tensor or None
        [n, protect_recent_tokens] int32 row indices of the tokens written last; None where the
        policy protects none.
    """

    def __init__(
        self,
        *,
        budget_tokens: int,
        overwrites: list[int],
        device: torch.device,
        compute_scores: Callable[[], torch.Tensor],
        compute_attention: Callable[[], torch.Tensor],
        recent: torch.Tensor | None = None,
    ):
        self.budget_tokens = budget_tokens
        self.overwrites = overwrites
        self.device = device
        self.recent = recent
        self._compute_scores = compute_scores
        self._compute_attention = compute_attention

    @cached_property
    def removal_scores(self) -> torch.Tensor:
        """[n, budget_tokens] float32, LongFlow's score of every slot; computed when asked for."""
        return self._compute_scores()

    @cached_property
    def attention_mass(self) -> torch.Tensor:
        """[n, budget_tokens] float32, this step's attention to every slot, mean over heads."""
        return self._compute_attention()

    def lowest(self, scores: torch.Tensor, protect_sink_tokens: int) -> torch.Tensor:
        """[n] int64, the slot of the lowest score that is not protected; the first of equals."""
        if protect_sink_tokens or self.recent is not None:
            scores = scores.clone()
            scores[:, :protect_sink_tokens] = torch.inf
            if self.recent is not None:
                scores.scatter_(1, self.recent.to(torch.int64), torch.inf)
        return scores.argmin(dim=1)


@dataclass(frozen=True)
class PromptEnd:
    """One layer's view of a prompt that must be cut.

    Attributes
    ----------
    prompt_tokens : int
    keep_tokens : int
        How many tokens may stay: budget - 1.
    score_earlier : callable
        ``score_earlier(window)`` is the SnapKV score [prompt_tokens - window] float32 of the
        tokens before the last `window` ones (`longflow_kernels.prompt_scores`).
    device : torch.device
    """

    prompt_tokens: int
    keep_tokens: int
    score_earlier: Callable[[int], torch.Tensor]
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
    #: The victim is the arg-min over what is not protected of `FullRows.removal_scores`
    #: ("removal") or `FullRows.attention_mass` ("attention"), so the fused kernel can pick it.
    ranks_by: ClassVar[str | None] = None
    #: Queries at the end of a prompt that `prompt_keep` looks at; they are always recomputed,
    #: so a prefix hit ends before them.
    prompt_window_tokens: ClassVar[int] = 32

    protect_sink_tokens: int = 0
    protect_recent_tokens: int = 0

    @property
    def min_budget_tokens(self) -> int:
        """Smallest budget with which the policy still has a choice."""
        cut = self.prompt_window_tokens + self.protect_sink_tokens + 2
        decode = self.protect_sink_tokens + self.protect_recent_tokens + 2
        return max(cut, decode)

    def known_victim(self, budget_tokens: int, overwrites: int) -> int | None:
        """Row index that a row overwrites next where lengths alone decide it, else None."""
        return None

    def victims(self, rows: FullRows) -> torch.Tensor:
        """Row index [n] int64 of the slot each row overwrites with its next token."""
        if self.ranks_by == "removal":
            return rows.lowest(rows.removal_scores, self.protect_sink_tokens)
        if self.ranks_by == "attention":
            return rows.lowest(rows.attention_mass, self.protect_sink_tokens)
        picks = [self.known_victim(rows.budget_tokens, done) for done in rows.overwrites]
        return torch.tensor(picks, dtype=torch.int64).to(rows.device, non_blocking=True)

    def prompt_keep(self, prompt: PromptEnd) -> torch.Tensor:
        """Prompt positions [keep_tokens] int64, ascending, that stay resident in this layer.

        SnapKV's pick unless a policy has its own (arXiv 2404.14469): the window, the sinks, and
        the highest scores of the rest.
        """
        window = self.prompt_window_tokens
        earlier = top_positions(
            prompt.score_earlier(window),
            prompt.keep_tokens - window,
            always_first=self.protect_sink_tokens,
        )
        last = torch.arange(
            prompt.prompt_tokens - window, prompt.prompt_tokens, device=prompt.device
        )
        return torch.cat([earlier, last])
