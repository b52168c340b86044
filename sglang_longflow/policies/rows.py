"""What a policy sees of the rows it picks victims for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch


@dataclass(frozen=True)
class Needs:
    """What a policy has the server remember between steps, beside each row's next victim.

    Attributes
    ----------
    slot_score : bool
        One float32 for each slot, `FullRows.accumulate`.
    slot_likeness : bool
        One more float32 for each slot, `FullRows.likest`, and two for each row,
        `FullRows.level` and `FullRows.recall`.
    slot_order : bool
        When each slot was written, `FullRows.order`.
    query_window : int
        Queries of the last steps, `FullRows.queries`.
    queue_tokens : int
        Victims that are picked at once, at most.
    """

    slot_score: bool = False
    slot_likeness: bool = False
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
            and self.slot_likeness <= other.slot_likeness
            and self.slot_order <= other.slot_order
            and self.query_window in (0, other.query_window)
            and self.queue_tokens <= other.queue_tokens
        )


class RowMemory(Protocol):
    """What the server remembers of one layer's full rows (`flow.policy_memory`)."""

    def order(self) -> torch.Tensor: ...
    def accumulate(self, scores: torch.Tensor, decay: float, peak: bool) -> torch.Tensor: ...
    def likest(self, likeness: torch.Tensor) -> torch.Tensor: ...
    def level(self, remembered: torch.Tensor, share: float) -> torch.Tensor: ...
    def recall(self, part: torch.Tensor, begins_at: float) -> torch.Tensor: ...
    def past(self, decay: float) -> torch.Tensor: ...
    def queries(self) -> tuple[torch.Tensor, torch.Tensor]: ...
    def store_queue(self, queue: torch.Tensor) -> None: ...
    def queued(self, interval: int) -> torch.Tensor: ...


class FullRows:
    """Full rows of one layer that share a policy and a budget, at the end of a decode step.

    Attributes
    ----------
    budget_tokens : int
        Slots of each row, all of them taken.
    overwrites : list of int
        For each row: how many tokens it has overwritten so far; 0 where it filled in this step.
    prompt_tokens : list of int
        For each row: tokens of the prompt among those that filled it.
    recent : torch.Tensor or None
        [n, recent tokens] int32 row indices of the tokens written last, overwrite number i at place
        ``(i - 1) % recent tokens``; None where the server protects none.
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
        memory: RowMemory | None = None,
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
        self._memory = memory

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

    # remembered between steps, as far as the policy's `needs` say so

    @cached_property
    def order(self) -> torch.Tensor:
        """[n, budget_tokens] int64: the higher, the later a slot's token was written."""
        assert self._memory is not None
        return self._memory.order()

    def accumulate(
        self, scores: torch.Tensor, decay: float = 1.0, peak: bool = False
    ) -> torch.Tensor:
        """Add this step's [n, budget_tokens] to each slot's memory, and return it.

        With `peak` the memory is the larger of the two instead of their sum.

        A slot's memory starts at 0 when its token is written, all of it when the row fills, and
        counts ``decay`` times as much with every step. Call it once a step.
        """
        assert self._memory is not None
        return self._memory.accumulate(scores, decay, peak)

    def likest(self, likeness: torch.Tensor) -> torch.Tensor:
        """Each slot's largest likeness [n, budget_tokens] >= 0 so far, this step's included.

        As `accumulate` with `peak` and no decay, in a memory of its own.
        """
        assert self._memory is not None
        return self._memory.likest(likeness)

    def level(self, remembered: torch.Tensor, share: float) -> torch.Tensor:
        """[n, 1]: what about `share` of each row's slots had in `remembered` [n, budget_tokens],
        as it was followed until the step before; 0 for rows that filled in this step.

        It follows this step's, too (`longflow_kernels.next_level`): call it once a step.
        """
        assert self._memory is not None
        return self._memory.level(remembered, share)

    def past(self, decay: float) -> torch.Tensor:
        """[n, budget_tokens]: what `accumulate` had before this step, counted `decay` times; call
        it first."""
        assert self._memory is not None
        return self._memory.past(decay)

    def recall(self, part: torch.Tensor, begins_at: float) -> torch.Tensor:
        """[n, 1]: each row's recall as it was before this layer, and `begins_at` in rows that
        filled in this step.

        It takes in this layer's `part` [n, 1] (`longflow_kernels.next_recall`): call it once a
        step and layer.
        """
        assert self._memory is not None
        return self._memory.recall(part, begins_at)

    def queries(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The last queries [n, window, num_q_heads, head_dim] float32, and [n, window] bool which
        of them exist: a row that was not cut remembers those of its decode steps only."""
        assert self._memory is not None
        return self._memory.queries()

    def store_queue(self, queue: torch.Tensor) -> None:
        """Remember the victims [n, interval] of this and the next steps."""
        assert self._memory is not None
        self._memory.store_queue(queue)

    def queued(self, interval: int) -> torch.Tensor:
        """[n] int64, this step's victims out of the queues stored last."""
        assert self._memory is not None
        return self._memory.queued(interval)

    # picking

    def lowest(
        self, scores: torch.Tensor, protect_sink_tokens: int, count: int = 1
    ) -> torch.Tensor:
        """[n, count] int64, the slots of the lowest scores that are not protected, lowest first.

        Of equals the first; ``scores`` stay as they are.
        """
        if protect_sink_tokens or self.recent is not None:
            scores = scores.masked_fill(self.kept(protect_sink_tokens), torch.inf)
        if count == 1:
            return scores.argmin(dim=1, keepdim=True)
        return scores.argsort(dim=1, stable=True)[:, :count]

    def kept(self, protect_sink_tokens: int) -> torch.Tensor:
        """[n, budget_tokens] bool: slots that are protected."""
        shape = (len(self.overwrites), self.budget_tokens)
        kept = torch.zeros(shape, dtype=torch.bool, device=self.device)
        kept[:, :protect_sink_tokens] = True
        if self.recent is not None:
            kept.scatter_(1, self.recent.to(torch.int64), True)
        return kept

    def written_last(self, count: int) -> torch.Tensor:
        """[n, count] int64: row indices of the tokens written last, the newest first.

        Where a row has overwritten less than `count` only as many are right.
        """
        assert self.recent is not None and self.recent.shape[1] >= count
        done = torch.tensor(self.overwrites)[:, None]
        place = (done - 1 - torch.arange(count)) % self.recent.shape[1]
        return self.recent.to(torch.int64).gather(1, place.to(self.device, non_blocking=True))

    @cached_property
    def sequence(self) -> torch.Tensor:
        """[n, budget_tokens] int64: row indices in the order in which their tokens were written."""
        return self.order.argsort(dim=1)

    def newest(self, count: int) -> torch.Tensor:
        """[n, budget_tokens] bool: the `count` tokens written last."""
        late = self.sequence[:, self.budget_tokens - count :]
        return torch.zeros_like(self.order, dtype=torch.bool).scatter(1, late, True)
