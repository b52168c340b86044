# SPDX-License-Identifier: Apache-2.0
"""The running requests in ``longflow top``: in which order, and by which names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
#: How rows can be ordered, and by which key of the keyboard; numbers with the largest first.
SORTS: dict[str, tuple[str, Callable[[Row], Any] | None]] = {
    "arrival": ("a", None),  # as the server gives them
    "saved": ("s", lambda row: -saved_tokens(row)),
    "logical": ("l", lambda row: -row["seq_len"]),
    "resident": ("r", lambda row: -row["kv_len"]),
    "budget": ("b", lambda row: -row["kv_budget"]),
    "id": ("i", lambda row: row["rid"]),
}
SHORT_ID, WHOLE_ID = 8, 12  # characters: of a short id if it tells all apart, of one left whole


def printable(text: str) -> str:
    """A user's request id, with a question mark for whatever could control a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def saved_tokens(row: Row) -> int:
    """Tokens of a request that are not stored any more."""
    return max(0, row["seq_len"] - row["kv_len"]) if row["kv_budget"] else 0


def in_order(rows: Sequence[Row], sort: str) -> list[Row]:
    """The rows by a name of `SORTS`; equal ones stay as they are."""
    key = SORTS[sort][1]
    return list(rows) if key is None else sorted(rows, key=key)


def short_ids(rows: Sequence[Row]) -> list[str]:
    """The beginning of each id, or its end: the shorter of the two that tells them apart.

    It has the same length for all; ids of up to 12 characters stay whole.
    """
    ids = [printable(row["rid"]) for row in rows]
    length, count = SHORT_ID, len(set(ids))
    while (is_end := len({one[:length] for one in ids}) < count) and len(
        {one[-length:] for one in ids}
    ) < count:
        length += 1
    return [
        one
        if len(one) <= max(WHOLE_ID, length + 1)
        else (f"…{one[-length:]}" if is_end else f"{one[:length]}…")
        for one in ids
    ]
