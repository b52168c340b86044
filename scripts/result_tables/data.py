# SPDX-License-Identifier: Apache-2.0
"""Values of the CSVs in docs/results/, and how a table shows them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
DEFAULT, PAPER = "longflow-novel", "longflow"


@lru_cache
def read(kind: str) -> tuple[dict[str, str], ...]:
    """The rows of one CSV."""
    with (DOCS / "results" / f"{kind}.csv").open(newline="") as file:
        return tuple(csv.DictReader(file))


def rows_of(kind: str, **where: str | int) -> list[dict[str, str]]:
    """Rows whose columns have these values."""
    wanted = {name: str(value) for name, value in where.items()}
    return [row for row in read(kind) if all(row[name] == value for name, value in wanted.items())]


def value(kind: str, metric: str, **where: str | int) -> float:
    """The one value of a metric; more or fewer than one row is an error."""
    found = rows_of(kind, metric=metric, **where)
    if len(found) != 1:
        raise SystemExit(f"{kind}.csv has {len(found)} rows of {metric} for {where}")
    return float(found[0]["value"])


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def times(ratio: float, digits: int = 2) -> str:
    return f"{ratio:.{digits}f}x"


def whole(number: float) -> str:
    """With a comma per thousand; halves round up."""
    return f"{int(number + 0.5):,}"


def percent(share: float, digits: int = 1) -> str:
    """Of 100; halves round up, as `whole` rounds."""
    scale = 10**digits
    return f"{math.floor(share * 100 * scale + 0.5) / scale:.{digits}f} %"
