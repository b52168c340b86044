# SPDX-License-Identifier: Apache-2.0
"""Accuracy by policy and budget, with intervals; CSV, JSON and a table."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sglang_longflow.measure.accuracy.records import Record
from sglang_longflow.measure.table import print_table
from sglang_longflow.measure.variants import budget_text

Z_95 = 1.959964
#: Where fewer of a group's requests overwrote something, its accuracy is not about its budget.
ENOUGH_OVERWROTE = 0.5


@dataclass(frozen=True)
class Line:
    """One variant at one budget; shares of 1.

    Attributes
    ----------
    accuracy, accuracy_low, accuracy_high : float
        Share of right answers, and its 95 % interval (`accuracy_of`).
    overwrote : float
        Share of requests that really overwrote something.
    finished : float
        Share that ended by themselves.
    questions : int
        That were asked; fewer than `answers` where each was asked several times.
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
    questions: int

    @property
    def is_about_its_budget(self) -> bool:
        """False if most answers were too short to reach the budget."""
        return not self.budget or self.overwrote >= ENOUGH_OVERWROTE


def wilson(right: float, answers: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (E. B. Wilson, 1927)."""
    if not answers:
        return 0.0, 1.0
    share, square = right / answers, Z_95**2
    middle = share + square / (2 * answers)
    spread = Z_95 * math.sqrt(share * (1 - share) / answers + square / (4 * answers**2))
    scale = 1 + square / answers
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def accuracy_of(records: Sequence[Record]) -> tuple[float, float, float]:
    """Mean over the questions of their share of right answers, and its 95 % interval.

    Samples of one question are no independent trials, as all of them share its difficulty: the
    questions are the clusters. The variance of their means gives an effective number of answers
    (Kish's design effect, Survey Sampling, 1965; for evaluations of models arXiv 2411.00640),
    with which Wilson's interval is taken. It is at least the number of questions, as if all
    samples of a question agreed, and at most that of answers, so one sample a question gives
    Wilson's interval itself.
    """
    questions: dict[int, list[bool]] = {}
    for record in records:
        questions.setdefault(record.number, []).append(record.right)
    means = [statistics.fmean(right) for right in questions.values()]
    count, accuracy = len(means), statistics.fmean(means)
    effective = float(count)
    if count > 1 and 0 < accuracy < 1:
        variance = statistics.variance(means, accuracy) / count
        most = len(records)
        # As many independent answers as would vary as much.
        alike = accuracy * (1 - accuracy) / variance if variance else most
        effective = max(effective, min(alike, most))
    return accuracy, *wilson(accuracy * effective, effective)


def by_point(records: Iterable[Any]) -> dict[tuple[str, int], list[Any]]:
    """Records by (variant, budget), in the order of the first ones."""
    groups: dict[tuple[str, int], list[Any]] = {}
    for record in records:
        groups.setdefault((record.variant, record.budget), []).append(record)
    return groups


def summarise(records: Iterable[Record]) -> list[Line]:
    """A line for each variant and budget, in the order of their first records."""
    lines = []
    for (variant, budget), found in by_point(records).items():
        accuracy, low, high = accuracy_of(found)
        lines.append(
            Line(
                variant=variant,
                budget=budget,
                answers=len(found),
                accuracy=accuracy,
                accuracy_low=low,
                accuracy_high=high,
                overwrote=statistics.mean(record.overwritten_tokens > 0 for record in found),
                finished=statistics.mean(record.finished for record in found),
                mean_generated_tokens=statistics.mean(r.generated_tokens for r in found),
                mean_resident_tokens=statistics.mean(r.resident_tokens for r in found),
                questions=len({record.number for record in found}),
            )
        )
    return lines


def save(folder: Path, lines: Sequence[Any], digits: int = 4) -> None:
    """Write dataclasses of one kind to summary.csv and summary.json; `digits` is of floats."""
    rows = [
        {k: round(v, digits) if isinstance(v, float) else v for k, v in asdict(line).items()}
        for line in lines
    ]
    (folder / "summary.json").write_text(json.dumps(rows, indent=2) + "\n")
    with (folder / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["variant"])
        writer.writeheader()
        writer.writerows(rows)


def warnings_of(lines: Iterable[Line]) -> list[str]:
    """What a reader of the accuracies must know."""
    short = [line for line in lines if not line.is_about_its_budget]
    if not short:
        return []
    named = ", ".join(f"{x.variant} at {x.budget:,} ({x.overwrote:.0%})" for x in short)
    return [
        f"WARNING: marked with ! the accuracy says nothing about the budget: under "
        f"{ENOUGH_OVERWROTE:.0%} of the requests overwrote anything, the other answers were too "
        f"short to reach it: {named}"
    ]


def show(lines: list[Line]) -> None:
    """Print the table, and the warnings under it."""
    rows = [
        (
            line.variant,
            budget_text(line.budget),
            f"{line.answers:,}"
            + (f" of {line.questions:,}" if line.questions < line.answers else ""),
            f"{line.accuracy:.1%}",
            f"{line.accuracy_low:.1%} - {line.accuracy_high:.1%}",
            f"{line.overwrote:.0%}" + ("" if line.is_about_its_budget else " !"),
            f"{line.finished:.0%}",
            f"{line.mean_generated_tokens:,.0f}",
        )
        for line in lines
    ]
    columns = ("answers", "right", "95 %", "overwrote", "finished", "tokens")
    print_table("Right answers by policy and KV budget", columns, rows)
    for text in warnings_of(lines):
        print(text)
