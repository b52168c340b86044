"""Slots: which row takes a slot in the next decode step, which overwrites, which moves first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from sglang_longflow.core.admission import TreeNode, node_tokens, path_to_root
from sglang_longflow.core.contracts import KVBudget


class Step(Enum):
    """What a row does with its next token's K/V."""

    APPEND = "append"  # takes a new slot at its end
    OVERWRITE = "overwrite"  # overwrites its victim; the row owns all its slots
    OWN = "own"  # overwrites for the first time: slots shared with the tree are copied first
    CUT = "cut"  # first decode step of an over-long prompt: moves into `budget` own slots


@dataclass(frozen=True)
class DecodeRow:
    """A row before its next decode step.

    Attributes
    ----------
    budget : KVBudget or None
        None: a request the plugin does not manage.
    kv_len : int
        Slots in the row that hold K/V.
    tree_slots : int
        How many of them (the first ones) belong to the radix tree.
    owned : bool
    has_pick : bool
        The prefill has said which prompt positions stay.
    last_node : TreeNode or None
    decode_steps : int
        Decode steps since prefill.
    """

    budget: KVBudget | None
    kv_len: int
    tree_slots: int = 0
    owned: bool = False
    has_pick: bool = False
    last_node: TreeNode | None = None
    decode_steps: int = 0

    @property
    def must_cut(self) -> bool:
        """It has no free place in its budget, and no victim: one is chosen in decode only."""
        if self.budget is None or self.budget.is_full or self.owned:
            return False
        no_victim = self.kv_len == self.budget.tokens and self.decode_steps == 0
        return self.has_pick or no_victim or self.kv_len > self.budget.tokens

    @property
    def lacks_pick(self) -> bool:
        """A row to cut for which no prefill has said what stays: nobody knows why it is here."""
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


def slots_required(rows: Sequence[DecodeRow]) -> int:
    """Slots that must be free or evictable before the step so that it cannot fail, >= 0.

    Rows that become owners give their tree nodes back first; a node comes back only when no one
    else holds it.
    """
    taken = sum(row.new_slots for row in rows)
    returned = 0
    lockers: Counter[int] = Counter()
    nodes: dict[int, TreeNode] = {}
    for row in rows:
        if row.step is Step.CUT:
            returned += row.kv_len - row.tree_slots
        if row.step in (Step.CUT, Step.OWN):
            for node in path_to_root(row.last_node):
                lockers[id(node)] += 1
                nodes[id(node)] = node
    returned += sum(node_tokens(nodes[i]) for i, n in lockers.items() if nodes[i].lock_ref == n)
    return max(0, taken - returned)


def retraction_order(order: Sequence[int], bounded: Sequence[bool]) -> list[int]:
    """Reorder so that bounded rows are kept longest (SGLang retracts from the end)."""
    return [i for i in order if bounded[i]] + [i for i in order if not bounded[i]]
