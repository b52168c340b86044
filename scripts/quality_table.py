# SPDX-License-Identifier: Apache-2.0
"""Write sglang_longflow/planner/measured.py from docs/results/accuracy.csv; ``--check`` compares.

`longflow plan`, the banner and the console say with it what is known of the reasoner's answers.
"""

from __future__ import annotations

import csv
import hashlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "docs" / "results" / "accuracy.csv"
WEIGHTS = ROOT / "sglang_longflow" / "reasoner" / "model" / "model.safetensors"
MADE = ROOT / "sglang_longflow" / "planner" / "measured.py"
#: The measurement of docs/accuracy.md's table, of the weights that are shipped.
RUN = "2026-11-23-accuracy:answers.jsonl"
HEAD = '''\
# SPDX-License-Identifier: Apache-2.0
"""Made by scripts/quality_table.py from docs/results/accuracy.csv: what this project measured."""

from sglang_longflow.planner.runs import Point, Run

#: The reasoner that comes with the package, by the hash of its weights, and their size.
REASONER = "{model}"
REASONER_WEIGHTS_BYTES = {size}
PROJECT: tuple[Run, ...] = (
    Run(
        model=REASONER,
        task="reasoner",
        questions={questions},
        date="{date}",
        version="",
        points=(
'''
FOOT = """\
        ),
    ),
)
"""


def made() -> str:
    """The module's text."""
    with SOURCE.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == RUN and not row["part"]]
    points: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        point = points.setdefault((row["policy"], int(row["budget"])), {})
        point[row["metric"]] = float(row["value"])
    (questions,) = {int(point["answers"]) for point in points.values()}
    (date,) = {row["date"] for row in rows}
    weights = WEIGHTS.read_bytes()
    name = f"reasoner {hashlib.sha256(weights).hexdigest()[:12]}"
    lines = [
        f'            Point("{policy}", {budget}, {point["accuracy"]}, {point["overwrote"]}),\n'
        for (policy, budget), point in sorted(points.items())
    ]
    head = HEAD.format(model=name, size=len(weights), questions=questions, date=date)
    return head + "".join(lines) + FOOT


def main(arguments: list[str]) -> int:
    text = made()
    if "--check" not in arguments:
        MADE.write_text(text, encoding="utf-8")
    elif MADE.read_text(encoding="utf-8") != text:
        sys.exit(f"{MADE.relative_to(ROOT)} is out of date: run python scripts/quality_table.py")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
