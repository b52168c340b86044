"""Accuracy by policy and budget, with intervals; CSV, JSON and a table."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from sglang_longflow.evaluation.records import Record

Z_95 = 1.959964


@dataclass(frozen=True)
class Line:
    """One variant at one budget; shares of 1.

    Attributes
    ----------
    accuracy, accuracy_low, accuracy_high : float
        Share of right answers, and Wilson's 95 % interval.
    overwrote : float
        Share of requests that really overwrote something.
    finished : float
        Share that ended by themselves.
    """

    variant: str
    budget: int
    answers: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    overwrote: float
    finished: float
    mean_generated_tokens: float
    mean_resident_tokens: float


def wilson(right: int, answers: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (E. B. Wilson, 1927)."""
    if not answers:
        return 0.0, 1.0
    share, square = right / answers, Z_95**2
    middle = share + square / (2 * answers)
    spread = Z_95 * math.sqrt(share * (1 - share) / answers + square / (4 * answers**2))
    scale = 1 + square / answers
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def summarise(records: Iterable[Record]) -> list[Line]:
    """A line for each variant and budget, in the order of their first records."""
    groups: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record.variant, record.budget), []).append(record)
    lines = []
    for (variant, budget), found in groups.items():
        right = sum(record.right for record in found)
        low, high = wilson(right, len(found))
        lines.append(
            Line(
                variant=variant,
                budget=budget,
                answers=len(found),
                accuracy=right / len(found),
                accuracy_low=low,
                accuracy_high=high,
                overwrote=statistics.mean(record.overwritten_tokens > 0 for record in found),
                finished=statistics.mean(record.finished for record in found),
                mean_generated_tokens=statistics.mean(r.generated_tokens for r in found),
                mean_resident_tokens=statistics.mean(r.resident_tokens for r in found),
            )
        )
    return lines


def save(folder: Path, lines: list[Line]) -> None:
    """Write summary.csv and summary.json."""
    rows = [
        {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(line).items()}
        for line in lines
    ]
    (folder / "summary.json").write_text(json.dumps(rows, indent=2) + "\n")
    with (folder / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["variant"])
        writer.writeheader()
        writer.writerows(rows)


def show(lines: list[Line]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Right answers by policy and KV budget")
    for name in ("policy", "budget", "answers", "right", "95 %", "overwrote", "finished", "tokens"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for line in lines:
        table.add_row(
            line.variant,
            f"{line.budget:,}" if line.budget else "full",
            f"{line.answers:,}",
            f"{line.accuracy:.1%}",
            f"{line.accuracy_low:.1%} - {line.accuracy_high:.1%}",
            f"{line.overwrote:.0%}",
            f"{line.finished:.0%}",
            f"{line.mean_generated_tokens:,.0f}",
        )
    Console().print(table)
