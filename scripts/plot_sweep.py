"""Output tokens and running requests against the KV budget: docs/results/sweep.csv and its plot.

    python scripts/plot_sweep.py RESULT.json ...

Results are those of scripts/bench_throughput.py, one geometry, pool and workload. A result with a
budget of 0 is stock SGLang with full KV; it becomes the dashed line.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
COLUMNS = (
    *("budget", "system", "output_tokens_per_s", "running_mean", "retracted_requests"),
    *("inter_token_ms_mean", "cuda_graph_share", "window_s"),
)
SAME = ("geometry", "pool", "input", "output")


def draw(rows: list[dict], path: Path) -> None:
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
        axes.set_xlim(budgets[0] * 0.85, budgets[-1] * 1.3)
        axes.set_ylim(0, max(values) * 1.15)
        axes.set_xlabel("KV budget (tokens a request)")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if not all(row["cuda_graph_share"] for row in ours):
            hollow = dict(markerfacecolor="white", linestyle="none")
            axes.plot([], [], "o", color="C0", label="without CUDA graphs", **hollow)
        axes.legend()
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="JSON files")
    args = parser.parse_args()
    found = [json.loads(file.read_text()) for file in args.results]
    if len({tuple(result[name] for name in SAME) for result in found}) > 1:
        parser.error(f"the results differ in {', '.join(SAME)}")
    rows = [{name: result[name] for name in COLUMNS} for result in found]
    rows.sort(key=lambda row: row["budget"] or 10**9)
    with (DOCS / "results" / "sweep.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, DOCS / "sweep.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
