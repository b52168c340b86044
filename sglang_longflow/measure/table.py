# SPDX-License-Identifier: Apache-2.0
"""The tables of ``longflow bench`` and ``longflow eval`` on a terminal or in a log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

KEYS = 2  # columns that each table has: what was measured, and its budget


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], first: str = "policy"
) -> None:
    """Print rows of texts; the first two columns are `first` and the budget.

    No number is cut off. Where a terminal is too narrow for all columns there are several tables,
    one below the other, each with the first two; in a log one table is as wide as its contents.
    """
    from rich.console import Console

    console, found = Console(), [list(row) for row in rows]
    names = [first, "budget", *columns]
    indexes = [list(range(KEYS, len(names)))]
    if console.is_terminal:
        indexes = groups(console, names, found)
    tables = [_table(names, found, group, "" if n else title) for n, group in enumerate(indexes)]
    # Wider than a terminal only where a single column already is.
    console.width = max(console.width, *(_width(console, table) for table in tables))
    for table in tables:
        console.print(table)


def groups(
    console: Console, names: Sequence[str], rows: Sequence[Sequence[str]]
) -> list[list[int]]:
    """Indexes of the columns of each table: as many as fit beside the first two, at least one."""
    found: list[list[int]] = [[]]
    for index in range(KEYS, len(names)):
        wider = [*found[-1], index]
        if found[-1] and _width(console, _table(names, rows, wider, "")) > console.width:
            found.append([index])
        else:
            found[-1] = wider
    return found


def _table(
    names: Sequence[str], rows: Sequence[Sequence[str]], group: Sequence[int], title: str
) -> Table:
    from rich.table import Table

    table = Table(title=title or None, title_justify="left")
    shown = [*range(KEYS), *group]
    for index in shown:
        table.add_column(names[index], justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(row[index] for index in shown))
    return table


def _width(console: Console, table: Table) -> int:
    """Columns of a screen that the table needs to show everything."""
    return console.measure(table, options=console.options.update(max_width=10_000)).maximum
