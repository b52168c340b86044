# SPDX-License-Identifier: Apache-2.0
"""Admission: how many slots a request may still take, so that a running row never waits for one.

Accounting, in slots: everything that is free or evictable must cover the future needs of all rows
that run. A row that will overwrite ends up owning `budget` slots. It copies the radix tree's slots
that it shares when it first overwrites (`core.slots`). A tree node that only such rows hold is
released by the last of them in the same step, so it is credited to one of them as slots it has. A
node that anyone else holds is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from sglang_longflow.core.contracts import KVBudget
from sglang_longflow.core.rows import ResidentRow, node_tokens, path_to_root


def peak_slots(budget: KVBudget, prompt_tokens: int, max_new_tokens: int) -> int:
    """Slots a request holds at its peak: the whole prompt in prefill, then at most the budget.

    The last token's K/V is never stored; its slot covers the one step that overlap scheduling
    launches beyond the end.
    """
    total = total_tokens(prompt_tokens, max_new_tokens)
    return max(prompt_tokens, budget.resident(total))


def total_tokens(prompt_tokens: int, max_new_tokens: int) -> int:
    """Most slots that a request without a budget takes.

    A prefill generates a token even if none is asked for, and overlap scheduling may launch a
    decode step after it.
    """
    return prompt_tokens + max(1, max_new_tokens)


def prefill_slots(prompt_tokens: int) -> int:
    """Slots that an empty pool needs to admit a prompt in SGLang: two more than the prompt."""
    return prompt_tokens + 2


@dataclass(frozen=True)
class Reserve:
    """Future needs of the running rows.

    Attributes
    ----------
    per_row : list of int
        Slots each row may still take beyond those it has or is credited with.
    credited : frozenset of int
        ``id()`` of the tree nodes counted as slots of one of the rows.
    """

    per_row: list[int]
    credited: frozenset[int]

    @property
    def total_slots(self) -> int:
        return sum(self.per_row)


def reserve_for(rows: Iterable[ResidentRow]) -> Reserve:
    """Slots rows with a budget may still take; tree nodes that they give back count once."""
    rows = list(rows)
    lockers: Counter[int] = Counter()
    for row in rows:
        if row.will_own:
            lockers.update(id(node) for node in path_to_root(row.last_node))
    credited: set[int] = set()
    per_row = []
    for row in rows:
        if row.owned:
            per_row.append(0)
        elif row.will_own:
            assert row.budget is not None
            need = max(0, row.budget.tokens - (row.allocated_slots - row.tree_slots))
            credit = 0
            for node in path_to_root(row.last_node):
                if id(node) not in credited and lockers[id(node)] == node.lock_ref:
                    credited.add(id(node))
                    credit += node_tokens(node)
            per_row.append(need - min(need, credit))
        else:
            per_row.append(max(0, row.total_tokens - row.allocated_slots))
    return Reserve(per_row, frozenset(credited))


def admission_need(
    budget: KVBudget,
    prompt_tokens: int,
    total_tokens: int,
    hit_tokens: int,
    own_hit_tokens: int,
    held_hit_tokens: int,
) -> int:
    """Slots that must be free or evictable, beyond the locked prefix hit, to admit a request.

    Parameters
    ----------
    budget : KVBudget
        Bounded.
    prompt_tokens, total_tokens : int
        Tokens to prefill, and the most the request can reach.
    hit_tokens : int
        Prefix found in the tree and locked by this request.
    own_hit_tokens : int
        Part of it that nobody else holds: it comes back when the row gives its nodes back.
    held_hit_tokens : int
        Part of it that anyone else holds; running rows may count it as theirs (`reserve_for`).
    """
    prefill = prompt_tokens - hit_tokens
    if budget.must_cut(prompt_tokens) or total_tokens > budget.tokens:
        return max(prefill, budget.tokens - own_hit_tokens)
    # This request keeps its lock on shared nodes, so rows that counted on them must copy them.
    return max(prefill, total_tokens - hit_tokens) + held_hit_tokens
