# SPDX-License-Identifier: Apache-2.0
"""What the default policy gains and costs, in one picture for README.md: docs/images/gain.png.

Full KV (stock SGLang once it has settled) beside budgets of about a fifth and a tenth of what a
request would hold at its end. README.md has the same numbers as a table, which a test compares.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
FILE = ROOT / "docs" / "images" / "gain.png"
JOB = {"date": "2026-11-29", "commit": "20adcea", "gpu": "H200", "workload": "16k answers"}
SETTLED = "log, 555 to 1110 s"
POLICY = "longflow-novel"
#: Tokens of budget in the throughput run, and in the run that counts answers.
BUDGETS = ((3200, 345), (1600, 172))
COLOURS = ("#6b7280", "#0f766e", "#5eaaa3")


@dataclass(frozen=True)
class Gain:
    """Full KV or one budget: its label, mean running requests, output tokens/s, share answered."""

    label: str
    running_requests: float
    output_tokens_per_s: float
    right_answers: float


def value(kind: str, **where: object) -> float:
    """The one value of a row of docs/results/KIND.csv; ValueError if there is another number."""
    with (RESULTS / f"{kind}.csv").open(newline="", encoding="utf-8") as file:
        found = [
            row["value"]
            for row in csv.DictReader(file)
            if all(row[name] == str(wanted) for name, wanted in where.items())
        ]
    if len(set(found)) != 1:
        raise ValueError(f"{kind}.csv has {len(found)} rows for {where}, expected one")
    return float(found[0])


def gains() -> list[Gain]:
    """Full KV first, then the budgets."""

    def speed(metric: str, **where: object) -> float:
        return value("throughput", metric=metric, **JOB, **where)

    def answers(policy: str, budget: int) -> float:
        where = {"workload": "reasoner", "policy": policy, "budget": budget, "part": ""}
        return value("accuracy", metric="accuracy", **where)

    full = Gain(
        "full KV",
        speed("running_mean", system="stock", part=SETTLED),
        speed("output_tokens_per_s", system="stock", part=SETTLED),
        answers("full", 0),
    )
    found = [full]
    for (budget, slots), share in zip(BUDGETS, ("a fifth", "a tenth"), strict=True):
        where = {"system": POLICY, "budget": budget, "part": ""}
        found.append(
            Gain(
                f"budget:\n{share}",
                speed("running_mean", **where),
                speed("output_tokens_per_s", **where),
                answers(POLICY, slots),
            )
        )
    return found


def draw(rows: list[Gain], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(9, 2.1), layout="constrained")
    for axes, title, name, form in (
        (panels[0], "Requests at once", "running_requests", "{:.0f}"),
        (panels[1], "Output tokens per second", "output_tokens_per_s", "{:,.0f}"),
        (panels[2], "Problems solved", "right_answers", "{:.1%}"),
    ):
        values = [getattr(row, name) for row in rows]
        bars = axes.bar([row.label for row in rows], values, color=COLOURS, width=0.62)
        axes.bar_label(bars, [form.format(value) for value in values], padding=2, fontsize=9)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_ylim(0, max(values) * 1.16)
        axes.set_yticks([])
        axes.tick_params(axis="x", length=0, labelsize=8)
        axes.spines[["top", "left", "right"]].set_visible(False)
    figure.savefig(file, dpi=160)


if __name__ == "__main__":
    draw(gains(), FILE)
