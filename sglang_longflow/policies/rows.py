# SPDX-License-Identifier: Apache-2.0
"""The full rows that a policy picks victims for, and what is remembered of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # as in `base`
    import torch


@dataclass(frozen=True)
class Needs:
    """What a policy has the server remember between steps, beside each row's next victim.

    Attributes
    ----------
    slot_score : bool
        One float32 for each slot, `RowMemory.accumulate`.
    slot_similarity : bool
        One more float32 for each slot, `RowMemory.max_similarity`, and two for each row,
        `RowMemory.level` and `RowMemory.recall`.
    slot_order : bool
        When each slot was written, `RowMemory.order`.
    query_window : int
        Queries of the last steps, `RowMemory.queries`.
    queue_tokens : int
        Victims that are picked at once, at most.
    """

    slot_score: bool = False
    slot_similarity: bool = False
    slot_order: bool = False
    query_window: int = 0
    queue_tokens: int = 0

    @property
    def any(self) -> bool:
        return self != Needs()

    def within(self, other: Needs) -> bool:
        """Whether memory for `other` serves this too."""
        return (
            self.slot_score <= other.slot_score
            and self.slot_similarity <= other.slot_similarity
            and self.slot_order <= other.slot_order
            and self.query_window in (0, other.query_window)
            and self.queue_tokens <= other.queue_tokens
        )


class RowMemory(Protocol):
    """What the server remembers of one layer's full rows between steps.

    `PolicyMemory` keeps it, as far as the policy's `needs` say so; n rows of ``budget_tokens``.
    """

    def order(self) -> torch.Tensor:
        """[n, budget_tokens] int64: the higher, the later a slot's token was written."""

    def accumulate(
        self, scores: torch.Tensor, decay: float = 1.0, peak: bool = False
    ) -> torch.Tensor:
        """Add this step's [n, budget_tokens] to each slot's memory, and return it.

        With `peak` the memory is the larger of the two instead of their sum.

        A slot's memory starts at 0 when its token is written, all of it when the row fills, and
        counts ``decay`` times as much with every step. Call it once per step.
        """

    def past(self, decay: float) -> torch.Tensor:
        """[n, budget_tokens]: what `accumulate` had before this step, counted `decay` times; call
        it first."""

    def max_similarity(self, similarity: torch.Tensor) -> torch.Tensor:
        """Each slot's largest similarity [n, budget_tokens] >= 0 so far, this step's included.

        As `accumulate` with `peak` and no decay, in another memory.
        """

    def level(self, remembered: torch.Tensor, share: float) -> torch.Tensor:
        """[n, 1]: the running `share`-quantile of each row's `remembered` [n, budget_tokens], as of
        the step before; 0 for rows that filled in this step.

        Also updates it with this step's values (`longflow_kernels.next_level`): call it once per
        step.
        """

    def recall(self, part: torch.Tensor, begins_at: float) -> torch.Tensor:
        """[n, 1]: each row's recall before this layer; `begins_at` if the row filled in this step.

        Also updates it with this layer's `part` [n, 1] (`longflow_kernels.next_recall`): call it
        once per step and layer.
        """

    def queries(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The last queries [n, window, num_q_heads, head_dim] float32, and [n, window] bool which
        of them exist: a row that was not cut remembers those of its decode steps only."""

    def store_queue(self, queue: torch.Tensor) -> None:
        """Remember the victims [n, interval] of this and the next steps."""

    def queued(self, interval: int) -> torch.Tensor:
        """[n] int64, this step's victims out of the queues stored last."""


def undeclared(call: str, need: str) -> RuntimeError:
    """The error of a policy that asks for memory it did not declare."""
    return RuntimeError(
        f"a policy calls rows.memory.{call}() and has no memory for it: declare "
        f"needs = Needs({need}) in its class"
    )


class NoMemory:
    """`RowMemory` of a policy without `needs`: every call raises RuntimeError naming the need."""

    def order(self) -> torch.Tensor:
        raise undeclared("order", "slot_order=True")

    def accumulate(
        self, scores: torch.Tensor, decay: float = 1.0, peak: bool = False
    ) -> torch.Tensor:
        raise undeclared("accumulate", "slot_score=True")

    def past(self, decay: float) -> torch.Tensor:
        raise undeclared("past", "slot_score=True")

    def max_similarity(self, similarity: torch.Tensor) -> torch.Tensor:
        raise undeclared("max_similarity", "slot_similarity=True")

    def level(self, remembered: torch.Tensor, share: float) -> torch.Tensor:
        raise undeclared("level", "slot_similarity=True")

    def recall(self, part: torch.Tensor, begins_at: float) -> torch.Tensor:
        raise undeclared("recall", "slot_similarity=True")

    def queries(self) -> tuple[torch.Tensor, torch.Tensor]:
        raise undeclared("queries", "query_window=...")

    def store_queue(self, queue: torch.Tensor) -> None:
        raise undeclared("store_queue", "queue_tokens=...")

    def queued(self, interval: int) -> torch.Tensor:
        raise undeclared("queued", "queue_tokens=...")


NO_MEMORY = NoMemory()


class FullRows:
    """Full rows of one layer that share a policy and a budget, at the end of a decode step.

    Attributes
    ----------
    budget_tokens : int
        Slots of each row, all of them taken.
    overwrites : list of int
        For each row: how many tokens it has overwritten so far; 0 if it filled in this step.
    prompt_tokens : list of int
        For each row: tokens of the prompt among those that filled it.
    recent : torch.Tensor or None
        [n, recent tokens] int32 row indices of the tokens written last, overwrite number i at place
        ``(i - 1) % recent tokens``; None if the server protects none.
    memory : RowMemory
        What was remembered of the rows, as far as the policy's `needs` say so.
    scaling, logit_cap : float
        As in attention.
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
        prompt_tokens: list[int] | None = None,
        load: Callable[[str], torch.Tensor] | None = None,
        memory: RowMemory = NO_MEMORY,
        scaling: float = 1.0,
        logit_cap: float = 0.0,
    ):
        self.budget_tokens = budget_tokens
        self.overwrites = overwrites
        self.device = device
        self.recent = recent
        self.prompt_tokens = prompt_tokens or [0] * len(overwrites)
        self.scaling = scaling
        self.logit_cap = logit_cap
        self._compute_scores = compute_scores
        self._compute_attention = compute_attention
        self._load = load
        self.memory = memory

    @cached_property
    def removal_scores(self) -> torch.Tensor:
        """[n, budget_tokens] float32, LongFlow's score of every slot; computed when asked for."""
        return self._compute_scores()

    @cached_property
    def attention_mass(self) -> torch.Tensor:
        """[n, budget_tokens] float32, this step's attention to every slot, mean over heads."""
        return self._compute_attention()

    @cached_property
    def keys(self) -> torch.Tensor:
        """[n, budget_tokens, num_kv_heads, head_dim] float32, after RoPE."""
        assert self._load is not None
        return self._load("k").float()

    @cached_property
    def values(self) -> torch.Tensor:
        """[n, budget_tokens, num_kv_heads, v_head_dim] float32."""
        assert self._load is not None
        return self._load("v").float()

    # picking

    def lowest(self, scores: torch.Tensor, first_tokens_kept: int, count: int = 1) -> torch.Tensor:
        """[n, count] int64, the slots of the lowest scores that are not protected, lowest first.

        Ties go to the lowest index; ``scores`` is not modified.
        """
        if first_tokens_kept or self.recent is not None:
            scores = scores.masked_fill(self.protected(first_tokens_kept), math.inf)
        if count == 1:
            return scores.argmin(dim=1, keepdim=True)
        return scores.argsort(dim=1, stable=True)[:, :count]

    def protected(self, first_tokens_kept: int) -> torch.Tensor:
        """[n, budget_tokens] bool: slots that are protected."""
        import torch

        shape = (len(self.overwrites), self.budget_tokens)
        protected = torch.zeros(shape, dtype=torch.bool, device=self.device)
        protected[:, :first_tokens_kept] = True
        if self.recent is not None:
            protected.scatter_(1, self.recent.to(torch.int64), True)
        return protected

    def written_last(self, count: int) -> torch.Tensor:
        """[n, count] int64: row indices of the tokens written last, the newest first.

        In a row with fewer than `count` overwrites only that many entries are valid.
        """
        import torch

        assert self.recent is not None and self.recent.shape[1] >= count
        done = torch.tensor(self.overwrites)[:, None]
        place = (done - 1 - torch.arange(count)) % self.recent.shape[1]
        return self.recent.to(torch.int64).gather(1, place.to(self.device, non_blocking=True))

    @cached_property
    def sequence(self) -> torch.Tensor:
        """[n, budget_tokens] int64: row indices in the order in which their tokens were written."""
        return self.memory.order().argsort(dim=1)

    def newest(self, count: int) -> torch.Tensor:
        """[n, budget_tokens] bool: the `count` tokens written last."""
        import torch

        sequence = self.sequence
        late = sequence[:, self.budget_tokens - count :]
        return torch.zeros_like(sequence, dtype=torch.bool).scatter(1, late, True)
