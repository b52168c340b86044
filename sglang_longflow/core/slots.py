# SPDX-License-Identifier: Apache-2.0
"""Slots: which rows take a slot in the next decode step, which overwrite, which move first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sglang_longflow.core.contracts import FullRow, KVRow
from sglang_longflow.core.rows import Freed, ResidentRow, Step


def slots_required(rows: Sequence[ResidentRow], freed: Freed) -> int:
    """Slots that must be free or evictable before the step so that it cannot fail, >= 0.

    Rows that become owners give their hold on the tree back first; a slot of the tree comes back
    only when no one else holds it.
    """
    owners = [row for row in rows if row.step in (Step.CUT, Step.OWN)]
    taken = sum(row.new_slots for row in rows)
    cut = sum(row.kv_len - row.tree_slots for row in owners if row.step is Step.CUT)
    returned = cut + (sum(freed(owners)) if owners else 0)
    return max(0, taken - returned)


@dataclass(frozen=True)
class StepPlan:
    """A decode step of a batch, rows by their place in it; nothing of it is done yet.

    Attributes
    ----------
    taken_slots : int
        Slots to take from the pool, after the new owners have given theirs back.
    appends : dict of int to int
        By row that appends: its place among the slots taken.
    moves : dict of int to slice
        By row that moves: its part of the slots taken.
    owners : dict of int to Step
        By row that becomes owner of its slots: CUT or OWN. Those with slots of the tree, or to
        cut, are in `moves` too.
    cut_tokens : int
        Prompt tokens that its cuts drop.
    bounded : list of int
        Rows with a budget that could be read; this is a decode step more for each.
    kv_lens, overwrite, fresh, full_rows
        As in `DecodeView`.
    """

    taken_slots: int
    appends: dict[int, int]
    moves: dict[int, slice]
    owners: dict[int, Step]
    bounded: list[int]
    kv_lens: list[int]
    overwrite: list[bool]
    fresh: list[bool]
    full_rows: list[FullRow]
    cut_tokens: int

    @property
    def overwritten_tokens(self) -> int:
        """Rows that overwrite a slot in this step; a row that is cut does not."""
        return sum(self.overwrite) - sum(self.fresh)


def plan_step(managed: Sequence[KVRow | None], unsettled: Mapping[int, ResidentRow]) -> StepPlan:
    """Decide what each row of a batch does in its next decode step.

    Parameters
    ----------
    managed : sequence of KVRow or None
        The row of each request; None if the plugin does not manage it.
    unsettled : mapping of int to ResidentRow
        By place in the batch, the rows that may still take or return slots: all that do not own
        theirs. The others overwrite, and are full.
    """
    taken = cut_tokens = 0
    appends: dict[int, int] = {}
    moves: dict[int, slice] = {}
    owners: dict[int, Step] = {}
    bounded: list[int] = []
    kv_lens: list[int] = []
    overwrite: list[bool] = []
    fresh: list[bool] = []
    full_rows: list[FullRow] = []
    for i, row in enumerate(managed):
        resident = unsettled.get(i)
        if resident is None:  # almost all rows in almost all steps
            assert row is not None
            bounded.append(i)
            kv_lens.append(row.budget.tokens)
            overwrite.append(True)
            fresh.append(False)
            full_rows.append(_full(i, row, overwrites=1))
            continue
        step = resident.step
        if step is Step.APPEND:
            kv_len = resident.kv_len + 1
            appends[i] = taken
            taken += 1
        else:
            assert row is not None
            kv_len = row.budget.tokens
            owners[i] = step
            cut_tokens += row.cut_tokens if step is Step.CUT else 0
            if new := resident.new_slots:
                moves[i] = slice(taken, taken + new)
                taken += new
        kv_lens.append(kv_len)
        overwrite.append(step is not Step.APPEND)
        fresh.append(step is Step.CUT)
        if row is None or row.budget.is_full or resident.budget is None:
            continue
        bounded.append(i)
        if kv_len == row.budget.tokens:
            full_rows.append(_full(i, row, overwrites=int(step is Step.OWN)))
    return StepPlan(
        taken_slots=taken,
        appends=appends,
        moves=moves,
        owners=owners,
        bounded=bounded,
        kv_lens=kv_lens,
        overwrite=overwrite,
        fresh=fresh,
        full_rows=full_rows,
        cut_tokens=cut_tokens,
    )


def _full(index: int, row: KVRow, overwrites: int) -> FullRow:
    """A row that is full after the step, with this step's counts."""
    return FullRow(
        index,
        row.budget,
        row.overwritten_tokens + overwrites,
        row.decode_steps + 1,
        row.cut_tokens > 0,
    )


def retraction_order(order: Sequence[int], bounded: Sequence[bool]) -> list[int]:
    """Reorder so that bounded rows are kept longest (SGLang retracts from the end)."""
    return [i for i in order if bounded[i]] + [i for i in order if not bounded[i]]
