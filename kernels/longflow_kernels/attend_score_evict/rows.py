"""What the host tells the kernels of a decode step's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from longflow_kernels.attend_score_evict import layout
from longflow_kernels.attend_score_evict.layout import NUM_FIELDS

#: Rows of the fields that callers read.
KV_LEN, KV_START = layout.KV_LEN.value, layout.KV_START.value
SCORE_OFFSET, GIVEN_VICTIM = layout.SCORE_OFFSET.value, layout.GIVEN_VICTIM.value
SCORE_ALIGN = layout.SCORE_ALIGN.value


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
        The next victim where the host knows it (a ring, say); -1 where it does not.
    written : int
        Tokens overwritten since the row filled; only read where recent tokens are protected.
    """

    kv_len: int
    overwrites: bool = False
    scored: bool = False
    given_victim: int = -1
    written: int = 0
    by_attention: bool = False


def _aligned(tokens: int) -> int:
    return -(-tokens // SCORE_ALIGN) * SCORE_ALIGN


def score_places(capacity_tokens: int, max_rows: int) -> int:
    """Places for the scores of `max_rows` rows of `capacity_tokens` together, each row aligned."""
    return _aligned(capacity_tokens) + max_rows * SCORE_ALIGN


def pack_rows(rows: Sequence[StepRow], places: int) -> torch.Tensor:
    """A step's rows as the kernels read them: int32 [NUM_FIELDS, batch] on the host.

    Parameters
    ----------
    rows : sequence of StepRow
    places : int
        `op.Workspace.places`; scored rows must fit together.

    Raises
    ------
    ValueError
        More scored tokens than the workspace holds.
    """
    start = offset = 0
    packed = []
    for row in rows:
        packed.append(
            (
                row.kv_len,
                int(row.overwrites),
                offset if row.scored else -1,
                row.given_victim,
                row.written,
                start,
                int(row.by_attention),
            )
        )
        start += row.kv_len
        offset += _aligned(row.kv_len) if row.scored else 0
    if offset > places:
        raise ValueError(
            f"the scored rows' scores take {offset} places together, the workspace has {places}"
        )
    fields = torch.tensor(packed, dtype=torch.int32).reshape(-1, NUM_FIELDS)
    return fields.T.contiguous()


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
