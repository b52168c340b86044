# SPDX-License-Identifier: Apache-2.0
"""What was measured against the KV budget, one line for each policy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_longflow.measure.accuracy.summary import Line
from sglang_longflow.measure.variants import FULL


@dataclass(frozen=True)
class Point:
    """One variant at one budget (0: full KV), with its 95 % interval, in the plot's unit."""

    variant: str
    budget: int
    value: float
    low: float
    high: float


def budget_axis(axes: Any, budgets: Iterable[int]) -> None:
    """Budgets from left to right, on a logarithmic scale."""
    marks = sorted(set(budgets))
    if marks:
        axes.set_xscale("log")
        axes.set_xticks(marks, [f"{budget:,}" for budget in marks])
        axes.minorticks_off()
    axes.set_xlabel("KV budget (tokens a request)")
    axes.grid(alpha=0.3)


def draw(lines: list[Line], path: Path) -> None:
    """Write the accuracy as a PNG."""
    points = (
        Point(
            line.variant,
            line.budget,
            100 * line.accuracy,
            100 * line.accuracy_low,
            100 * line.accuracy_high,
        )
        for line in lines
    )
    draw_points(points, path, "right answers (%)", ylim=(-2, 102))


def draw_points(points: Iterable[Point], path: Path, label: str, **axis: Any) -> None:
    """Write a PNG; bars are the intervals, the dashed line is full KV.

    `label` is the unit, `axis` are matplotlib's properties of the axes, such as ``yscale``.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = list(points)
    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    variants = sorted({point.variant for point in points if point.variant != FULL})
    markers = "osD^vP*Xph<>"
    axes.set_prop_cycle(color=matplotlib.color_sequences["tab20"])  # more policies than ten
    for number, variant in enumerate(variants):
        found = sorted((x for x in points if x.variant == variant), key=lambda x: x.budget)
        axes.errorbar(
            [point.budget for point in found],
            [point.value for point in found],
            yerr=[
                [max(0.0, point.value - point.low) for point in found],
                [max(0.0, point.high - point.value) for point in found],
            ],
            label=variant,
            marker=markers[number % len(markers)],
            capsize=3,
            linewidth=1.4,
        )
    for point in points:
        if point.variant == FULL:
            axes.axhline(point.value, color="black", linestyle="--", label="full KV")
            axes.axhspan(point.low, point.high, color="black", alpha=0.08)
    budget_axis(axes, {point.budget for point in points if point.budget})
    axes.set(**axis)
    axes.set_ylabel(label)
    figure.legend(loc="outside right upper")  # many policies: beside their lines
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
