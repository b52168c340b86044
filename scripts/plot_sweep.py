# SPDX-License-Identifier: Apache-2.0
"""Draw output tokens and running requests against the KV budget: docs/images/sweep.png.

    python scripts/plot_sweep.py [--commit 20adcea] [--card 1]

The points are those of docs/results/throughput.csv: 16k answers under `longflow`, one job, one
card. Stock with full KV becomes the dashed line.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
METRICS = ("output_tokens_per_s", "running_mean", "cuda_graph_share")


def points(commit: str, card: str) -> list[dict[str, float]]:
    """METRICS and the budget per point, by budget; stock's, on any card, has a budget of 0."""
    found: dict[int, dict[str, float]] = {}
    with (DOCS / "results" / "throughput.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            ours = row["system"] == "longflow" and row["card"] == card
            wanted = (
                row["commit"] == commit and row["workload"] == "16k answers" and not row["part"]
            )
            if wanted and (ours or row["system"] == "stock") and row["metric"] in METRICS:
                budget = int(row["budget"])
                point = found.setdefault(budget, {"budget": budget})
                point[row["metric"]] = float(row["value"])
    return [found[budget] for budget in sorted(found)]


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """Both curves over one axis of budgets; hollow marks are steps without CUDA graphs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ours = [row for row in rows if row["budget"]]
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    shown = (("output_tokens_per_s", "output tokens/s"), ("running_mean", "running requests"))
    for axes, (field, label) in zip(panels, shown, strict=True):
        values = [row[field] for row in ours]
        axes.plot([row["budget"] for row in ours], values, color="C0", label="with a budget")
        for row in ours:
            face = "C0" if row["cuda_graph_share"] else "white"
            axes.plot(row["budget"], row[field], "o", color="C0", markerfacecolor=face)
            axes.annotate(
                f"{row[field]:,.0f}",
                (row["budget"], row[field]),
                textcoords="offset points",
                xytext=(6, 6),
                fontsize=8,
            )
        for row in rows:
            if not row["budget"]:
                axes.axhline(row[field], color="black", linestyle="--", label="stock, full KV")
        axes.set_xscale("log")
        budgets = [row["budget"] for row in ours]
        axes.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
        axes.minorticks_off()
        axes.set_xlim(budgets[0] * 0.85, budgets[-1] * 1.4)
        axes.set_ylim(0, max(values) * 1.15)
        axes.set_xlabel("KV budget (tokens per request)")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if not all(row["cuda_graph_share"] for row in ours):
            hollow = dict(markerfacecolor="white", linestyle="none")
            axes.plot([], [], "o", color="C0", label="without CUDA graphs", **hollow)
        axes.legend()
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commit", default="20adcea")
    parser.add_argument("--card", default="1", help="which one, if the job had several")
    parser.add_argument("--out", type=Path, default=DOCS / "images" / "sweep.png")
    args = parser.parse_args()
    rows = points(args.commit, args.card)
    if len(rows) < 2:
        parser.error(f"docs/results/throughput.csv has no sweep of {args.commit}, card {args.card}")
    draw(rows, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
