# SPDX-License-Identifier: Apache-2.0
"""KL divergence and top-1 agreement by policy and budget; a table and a plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sglang_longflow.measure.accuracy.summary import by_point
from sglang_longflow.measure.plot import Point, draw_points
from sglang_longflow.measure.table import print_table
from sglang_longflow.measure.variants import budget_text


@dataclass(frozen=True)
class TextRecord:
    """One text at one budget.

    Attributes
    ----------
    variant : str
        Name of the policy with its protections, or "full".
    budget : int
        0 for full KV.
    number : int
        Of the text, in its file and seed.
    kl : float
        KL(full || budget) of the next token's distribution in nats, mean over the forced tokens.
    agreement : float
        Share of them whose most likely token is that of full KV.
    prompt_tokens, forced_tokens, resident_tokens, overwritten_tokens, cut_tokens : int
    """

    variant: str
    budget: int
    number: int
    kl: float
    agreement: float
    prompt_tokens: int
    forced_tokens: int
    resident_tokens: int
    overwritten_tokens: int
    cut_tokens: int

    @property
    def key(self) -> tuple[str, int, int]:
        return self.variant, self.budget, self.number


@dataclass(frozen=True)
class TextLine:
    """One variant at one budget.

    Attributes
    ----------
    forced_tokens : int
        In all texts together.
    kl, kl_low, kl_high : float
        Nats per token: mean over the texts, and its 95 % interval; None for one text.
    agreement, agreement_low, agreement_high : float
        Share of 1, likewise.
    overwrote : float
        Share of texts that really overwrote something, or were cut.
    """

    variant: str
    budget: int
    texts: int
    forced_tokens: int
    kl: float
    kl_low: float | None
    kl_high: float | None
    agreement: float
    agreement_low: float | None
    agreement_high: float | None
    overwrote: float
    mean_resident_tokens: float


def interval(values: Sequence[float], top: float = math.inf) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean, within 0 and `top`; None for fewer than two values."""
    from scipy import stats  # SGLang brings it

    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    spread = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return max(0.0, mean - spread), min(top, mean + spread)


def summarise_texts(records: Iterable[TextRecord]) -> list[TextLine]:
    """A line for each variant and budget, in the order of their first records.

    Texts are of one length, so each counts as much as any other. They, not their tokens, are what
    the interval takes as independent.
    """
    lines = []
    for (variant, budget), found in by_point(records).items():
        kl, agreement = [r.kl for r in found], [r.agreement for r in found]
        kl_low, kl_high = interval(kl) or (None, None)
        agreement_low, agreement_high = interval(agreement, 1.0) or (None, None)
        lines.append(
            TextLine(
                variant=variant,
                budget=budget,
                texts=len(found),
                forced_tokens=sum(r.forced_tokens for r in found),
                kl=statistics.fmean(kl),
                kl_low=kl_low,
                kl_high=kl_high,
                agreement=statistics.fmean(agreement),
                agreement_low=agreement_low,
                agreement_high=agreement_high,
                overwrote=statistics.mean(r.overwritten_tokens + r.cut_tokens > 0 for r in found),
                mean_resident_tokens=statistics.mean(r.resident_tokens for r in found),
            )
        )
    return lines


def draw_kl(lines: Iterable[TextLine], path: Path) -> None:
    """Write KL against the budget as a PNG; full KV is what two runs of it differ by."""
    points = []
    for line in lines:
        low, high = line.kl_low, line.kl_high
        if low is None or high is None:
            low = high = line.kl
        # A logarithmic axis has no 0 for a bar to end at.
        points.append(Point(line.variant, line.budget, line.kl, max(low, line.kl / 100), high))
    draw_points(points, path, "KL(full || budget), nats per token", yscale="log")


def show_texts(lines: Iterable[TextLine]) -> None:
    """Print the table."""
    rows = [
        (
            line.variant,
            budget_text(line.budget),
            f"{line.texts:,}",
            f"{line.kl:.3g}",
            f"{line.kl_low:.2g} - {line.kl_high:.2g}" if line.kl_low is not None else "",
            f"{line.agreement:.2%}",
            f"{line.overwrote:.0%}",
            f"{line.mean_resident_tokens:,.0f}",
        )
        for line in lines
    ]
    columns = ("texts", "KL", "95 %", "top-1", "overwrote", "resident")
    title = "KL(full || budget) in nats per token, and top-1 agreement with full KV"
    print_table(title, columns, rows)
