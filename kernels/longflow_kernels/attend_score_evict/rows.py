# SPDX-License-Identifier: Apache-2.0
"""The rows of a decode step, packed by the host for the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from longflow_kernels.attend_score_evict import layout
from longflow_kernels.attend_score_evict.layout import NUM_FIELDS

#: Rows of the fields that callers read.
KV_LEN, KV_START = layout.KV_LEN.value, layout.KV_START.value
SCORE_OFFSET, GIVEN_VICTIM = layout.SCORE_OFFSET.value, layout.GIVEN_VICTIM.value
OVERWRITES, WRITTEN = layout.OVERWRITES.value, layout.WRITTEN.value
BY_ATTENTION, REMEMBERS = layout.BY_ATTENTION.value, layout.REMEMBERS.value
USES_NOVELTY = layout.USES_NOVELTY.value
SCORE_ALIGN: int = layout.SCORE_ALIGN.value


@dataclass(frozen=True)
class StepRow:
    """One row of a decode step, as the host knows it.

    Attributes
    ----------
    kv_len : int
        Tokens the row holds after this step's write; 0 marks a padded row of a CUDA graph.
    overwrites : bool
        The new token goes to row index ``next_slot``, else to ``kv_len - 1``.
    scored : bool
        The row is full and its next victim is the slot with the lowest score.
    by_attention : bool
        The score is the attention that a slot gets, summed over heads; else LongFlow's, which
        weighs it by the magnitude of the slot's value.
    given_victim : int
        The next victim if the host knows it (a ring, say); -1 if it does not.
    written : int
        Tokens overwritten since the row filled; read where recent tokens are protected, and where
        the row remembers.
    remembers : bool
        The score is the highest of this step's and those that its slots have in `slot_values`.
    uses_novelty : bool
        Novelty is added to that score (`arguments.Novelty`); such a row remembers, too.
    """

    kv_len: int
    overwrites: bool = False
    scored: bool = False
    given_victim: int = -1
    written: int = 0
    by_attention: bool = False
    remembers: bool = False
    uses_novelty: bool = False


def _aligned(tokens: Any) -> Any:
    """The next multiple of SCORE_ALIGN, of an int or of each entry of a tensor."""
    return (tokens + SCORE_ALIGN - 1) // SCORE_ALIGN * SCORE_ALIGN


def score_capacity(capacity_tokens: int, max_rows: int) -> int:
    """Slots to have room for, for scores of `max_rows` rows of `capacity_tokens` together."""
    return int(_aligned(capacity_tokens)) + max_rows * SCORE_ALIGN


def pack_rows(rows: Sequence[StepRow], capacity: int) -> torch.Tensor:
    """A step's rows as the kernels read them: int32 [NUM_FIELDS, batch] on the host.

    Parameters
    ----------
    rows : sequence of StepRow
    capacity : int
        `Workspace.score_capacity`; scored rows must fit together.

    Raises
    ------
    ValueError
        More scored tokens than the workspace holds.
    """
    return pack_columns(
        [row.kv_len for row in rows],
        overwrites=[row.overwrites for row in rows],
        scored=[row.scored for row in rows],
        by_attention=[row.by_attention for row in rows],
        given_victims=[row.given_victim for row in rows],
        written=[row.written for row in rows],
        remembers=[USES_NOVELTY if row.uses_novelty else int(row.remembers) for row in rows],
        capacity=capacity,
    )


def pack_columns(
    kv_lens: Sequence[int],
    *,
    overwrites: Sequence[bool],
    scored: Sequence[bool],
    by_attention: Sequence[bool],
    given_victims: Sequence[int],
    written: Sequence[int],
    remembers: Sequence[int],
    capacity: int,
) -> torch.Tensor:
    """`pack_rows` of `StepRow`'s fields, each a sequence over the batch; `remembers` is 0, 1, or
    `USES_NOVELTY`.

    Every decode step of a server packs all its rows, so this does nothing row by row.
    """
    columns = (kv_lens, overwrites, given_victims, written, by_attention, remembers, scored)
    kv_len, overwrite, given, done, attention, memory, score = (
        torch.tensor(column, dtype=torch.int32) for column in columns
    )
    taken = torch.where(score > 0, _aligned(kv_len), 0)
    ends = taken.cumsum(0, dtype=torch.int32)
    total = int(ends[-1]) if len(ends) else 0
    if total > capacity:
        raise ValueError(
            f"the scored rows take {total} slots together, the workspace has scores of {capacity}"
        )
    fields = torch.empty(NUM_FIELDS, len(kv_len), dtype=torch.int32)
    fields[KV_LEN] = kv_len
    fields[OVERWRITES] = overwrite
    fields[SCORE_OFFSET] = torch.where(score > 0, ends - taken, -1)
    fields[GIVEN_VICTIM] = given
    fields[WRITTEN] = done
    fields[KV_START] = kv_len.cumsum(0, dtype=torch.int32) - kv_len
    fields[BY_ATTENTION] = attention
    fields[REMEMBERS] = memory
    return fields


def pack_full_rows(kv_lens: torch.Tensor) -> torch.Tensor:
    """`pack_rows` for rows that append and are never scored.

    Parameters
    ----------
    kv_lens : torch.Tensor
        [batch] integers on the host, lengths after this step's write.
    """
    fields = torch.zeros(NUM_FIELDS, kv_lens.shape[0], dtype=torch.int32)
    fields[KV_LEN] = kv_lens
    fields[KV_START, 1:] = kv_lens[:-1].cumsum(0)
    fields[SCORE_OFFSET] = -1
    fields[GIVEN_VICTIM] = -1
    return fields
