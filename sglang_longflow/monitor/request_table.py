# SPDX-License-Identifier: Apache-2.0
"""The running requests in ``longflow top``: a bar each, and the columns that fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from sglang_longflow.monitor.request_order import (
    Row,
    in_order,
    printable,
    saved_tokens,
    short_ids,
)

LONGEST_ID = 36
#: Left out one after the other where there is no room for a bar of MIN_BAR; then the bar itself.
DROPPED_FIRST = ("policy", "budget", "resident")
MIN_BAR, MAX_BAR = 14, 40
GAP = 2  # between two columns
#: Letters and styles of a bar: slots held under a budget, with full KV, and length beyond them.
HELD, FULL, GONE = ("#", "green"), ("F", "yellow"), ("-", "bright_black")


def request_bar(row: Row, width: int, longest: int) -> Text:
    """What a request holds, then what it no longer does, together as long as its length.

    `longest` is the length in tokens that fills `width` cells.
    """
    cells = max(1, round(width * row["seq_len"] / max(1, longest)))
    held = min(cells, max(1, round(width * row["kv_len"] / max(1, longest))))
    letter, style = HELD if row["kv_budget"] else FULL
    bar = Text(letter * held, style)
    return bar.append(GONE[0] * (cells - held), GONE[1]) if saved_tokens(row) else bar


def _texts(row: Row, name: str) -> dict[str, Text]:
    """The cells of a row by column, without its bar."""
    budget, length, saved = row["kv_budget"], row["seq_len"], saved_tokens(row)
    is_full_row = budget and row["kv_len"] >= budget
    style = "" if budget else FULL[1]
    return {
        "request": Text(name, style),
        "logical": Text(f"{length:,}"),
        "resident": Text(f"{row['kv_len']:,}", HELD[1] if is_full_row else ""),
        "budget": Text(f"{budget:,}" if budget else "full KV", style),
        "saved": Text(f"{saved / length:.0%}" if saved else "-", HELD[1] if saved else ""),
        "policy": Text(row["kv_policy"] if budget else "-"),
    }


def columns_for(widths: dict[str, int], width: int) -> tuple[list[str], int]:
    """Which columns fit beside each other, and how wide the bar is; 0: there is no room for one.

    Parameters
    ----------
    widths : dict of str to int
        Cells that each column needs.
    width : int
        Of the terminal.
    """
    kept = list(widths)
    for dropped in (None, *DROPPED_FIRST):
        if dropped is not None:
            kept.remove(dropped)
        left = width - sum(widths[name] + GAP for name in kept)
        if left >= MIN_BAR:
            return kept, min(left, MAX_BAR)
    return kept, 0


def requests_table(stats: dict[str, Any], most: int, sort: str, width: int) -> Table:
    """The first `most` running requests in that order, on a terminal of `width` cells."""
    rows = in_order(stats["requests"], sort)
    shown = rows[:most]
    cells = [_texts(row, name) for row, name in zip(shown, short_ids(rows), strict=False)]
    names = list(_texts(EMPTY, ""))
    widths = {n: max([len(n), *(row[n].cell_len for row in cells)]) for n in names}
    widths["request"] = min(widths["request"], LONGEST_ID)
    names, bar = columns_for(widths, width)
    table = _table(names, bar)
    longest = max((row["seq_len"] for row in shown), default=1)
    for row, texts in zip(shown, cells, strict=True):
        bars = [request_bar(row, bar, longest)] if bar else []
        table.add_row(*(texts[name] for name in names), *bars)
    if hidden := len(rows) - len(shown):
        table.caption = f"and {hidden:,} more"
    return table


def plain_table(stats: dict[str, Any], sort: str) -> Table:
    """All running requests with their whole ids and no bars, for a file."""
    rows = in_order(stats["requests"], sort)
    table = _table(list(_texts(EMPTY, "")), bar=0)
    for row in rows:
        table.add_row(*_texts(row, printable(row["rid"])).values())
    return table


EMPTY: Row = {"rid": "", "seq_len": 0, "kv_len": 0, "kv_budget": 0, "kv_policy": ""}


def _table(names: Sequence[str], bar: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for name in names:
        justify: Any = "left" if name in ("request", "policy") else "right"
        longest = LONGEST_ID if name == "request" else None
        table.add_column(name, justify=justify, no_wrap=True, max_width=longest)
    if bar:
        table.add_column(f"{HELD[0]} held {GONE[0]} saved"[:bar], min_width=bar, no_wrap=True)
    return table
