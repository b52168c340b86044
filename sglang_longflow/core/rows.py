# SPDX-License-Identifier: Apache-2.0
"""A request that holds slots, as the accounting sees it: what it may still take, and does next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from sglang_longflow.core.contracts import KVBudget


class Step(Enum):
    """What a row does with its next token's K/V."""

    APPEND = "append"  # takes a new slot at its end
    OVERWRITE = "overwrite"  # overwrites its victim; the row owns all its slots
    OWN = "own"  # overwrites for the first time: slots shared with the tree are copied first
    CUT = "cut"  # first decode step of an over-long prompt: moves into `budget` own slots


@dataclass(frozen=True)
class ResidentRow:
    """One request that holds slots, read once from SGLang's ``Req``.

    Attributes
    ----------
    budget : KVBudget or None
        None: a request the plugin does not manage; of it `kv_len` alone is known.
    kv_len : int
        Slots in the row that hold K/V.
    allocated_slots : int
        Slots in the row.
    total_tokens : int
        Prompt plus max_new_tokens.
    tree_slots : int
        How many of its slots (the first ones) belong to the radix tree.
    owned : bool
        Cut or overwriting already: it holds its budget and will take nothing more.
    has_pick : bool
        Prefilled with a prompt over budget - 1 and not cut yet: the prefill has said which prompt
        positions stay.
    lock : object or None
        Its hold on the radix tree; only what is `Freed` reads it.
    decode_steps : int
        Decode steps since prefill.
    """

    budget: KVBudget | None
    kv_len: int
    allocated_slots: int = 0
    total_tokens: int = 0
    tree_slots: int = 0
    owned: bool = False
    has_pick: bool = False
    lock: object | None = None
    decode_steps: int = 0

    @property
    def will_own(self) -> bool:
        """The row ends up owning `budget` slots and gives its tree nodes back."""
        if self.budget is None or self.budget.is_full or self.owned:
            return False
        return self.has_pick or self.total_tokens > self.budget.tokens

    @property
    def must_cut(self) -> bool:
        """It has no free place in its budget, and no victim: one is chosen in decode only."""
        if self.budget is None or self.budget.is_full or self.owned:
            return False
        no_victim = self.kv_len == self.budget.tokens and self.decode_steps == 0
        return self.has_pick or no_victim or self.kv_len > self.budget.tokens

    @property
    def lacks_pick(self) -> bool:
        """A row to cut whose prefill picked no positions; no way to this state is known."""
        return self.must_cut and not self.has_pick

    @property
    def step(self) -> Step:
        if self.budget is None or self.budget.is_full:
            return Step.APPEND
        if self.must_cut:
            return Step.CUT
        if self.kv_len < self.budget.tokens:
            return Step.APPEND
        return Step.OVERWRITE if self.owned else Step.OWN

    @property
    def new_slots(self) -> int:
        """Slots the row takes from the pool in this step, before any come back."""
        step = self.step
        if step is Step.APPEND:
            return 1
        if step is Step.CUT:
            assert self.budget is not None
            return self.budget.tokens
        return self.tree_slots if step is Step.OWN else 0


#: Slots of the radix tree that nobody would hold any more, row by row, if these rows gave up their
#: holds one after the other: a slot counts for the last of its holders among them.
Freed = Callable[[Sequence[ResidentRow]], Sequence[int]]
