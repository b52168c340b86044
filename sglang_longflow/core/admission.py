# SPDX-License-Identifier: Apache-2.0
"""Admission: how many slots a request may still take, so that a running row never waits for one.

Accounting, in slots: everything that is free or evictable must cover the future needs of all rows
that run. A row that will overwrite ends up owning `budget` slots. It copies the radix tree's slots
that it shares when it first overwrites (`core.slots`). What of the tree only such rows hold is
released by the last of them in the same step, so it is credited to one of them as slots it has.
What anyone else holds is not.
"""

from __future__ import annotations

from collections.abc import Iterable

from sglang_longflow.core.contracts import KVBudget
from sglang_longflow.core.rows import Freed, ResidentRow


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


def reserve_for(rows: Iterable[ResidentRow], freed: Freed) -> list[int]:
    """Slots that each row with a budget may still take beyond those it has or is credited with.

    Slots of the tree that these rows give back count once, and for no more than their row needs:
    a row may wait long before it gives up its hold.
    """
    rows = list(rows)
    will_own = [row for row in rows if row.will_own]
    credits = iter(freed(will_own) if will_own else ())
    needs = []
    for row in rows:
        if row.owned:
            needs.append(0)
        elif row.will_own:
            assert row.budget is not None
            need = max(0, row.budget.tokens - (row.allocated_slots - row.tree_slots))
            needs.append(max(0, need - next(credits)))
        else:
            needs.append(max(0, row.total_tokens - row.allocated_slots))
    return needs


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
        Part of it that nobody else holds: it comes back when the row gives up its hold.
    held_hit_tokens : int
        Part of it that anyone else holds; running rows may count it as theirs (`reserve_for`).
    """
    prefill = prompt_tokens - hit_tokens
    if budget.must_cut(prompt_tokens) or total_tokens > budget.tokens:
        return max(prefill, budget.tokens - own_hit_tokens)
    # This request keeps its hold on what it shares, so rows that counted on it must copy it.
    return max(prefill, total_tokens - hit_tokens) + held_hit_tokens
