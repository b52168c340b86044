# SPDX-License-Identifier: Apache-2.0
"""The tables of ``longflow bench`` and ``longflow eval`` on a terminal or in a log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of texts; the first two columns are the policy and its budget.

    A table is as wide as its contents, also on a narrower terminal or in a log: a number that is
    cut off says nothing.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in ("policy", "budget", *columns):
        justify = "left" if name == "policy" else "right"
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*row)
    console = Console()
    unbounded = console.options.update(max_width=10_000)
    console.width = max(console.width, console.measure(table, options=unbounded).maximum)
    console.print(table)
