"""Write the table of docs/results/kernels.csv into docs/results.md; --check compares only.

python scripts/kernel_table.py [--check]
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
CSV, CONDITIONS = DOCS / "results" / "kernels.csv", DOCS / "results" / "kernels.json"
BEGIN, END = "<!-- scripts/kernel_table.py: begin -->\n", "<!-- scripts/kernel_table.py: end -->\n"
COLUMNS = (
    *("Query/KV heads/size", "Batch", "Row", "FlashInfer"),
    *("Full rows, a victim a layer", "A victim a KV head", "Rows that are not full"),
    *("`longflow-peak`", "`longflow-novel`"),
)
HEAD = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}\n"


def table(lines: list[dict[str, str]], conditions: dict[str, str]) -> str:
    """The lines of a CSV of bench_kernels.py as Markdown; times in microseconds.

    Beside each its ratio to FlashInfer's, or, of policies that remember, to `longflow`'s full rows.
    """

    def beside(line: dict[str, str], name: str, rival: str = "flashinfer_median") -> str:
        time = float(line[name])
        return f"{time:.1f} ({time / float(line[rival]):.3f}x)"

    rows = [
        f"| {line['heads']} | {line['batch']} | {int(line['row_tokens']):,} "
        f"| {float(line['flashinfer_median']):.1f} | {beside(line, 'longflow_median')} "
        f"| {beside(line, 'kv_head_median')} | {beside(line, 'not_full_median')} "
        f"| {beside(line, 'peak_median', 'longflow_median')} "
        f"| {beside(line, 'novel_median', 'longflow_median')} |\n"
        for line in lines
    ]
    named = ", ".join(f"{value}" for value in conditions.values())
    return HEAD + "".join(rows) + f"\n{named}.\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where the page is not current")
    args = parser.parse_args()
    with CSV.open(newline="") as file:
        made = table(list(csv.DictReader(file)), json.loads(CONDITIONS.read_text()))
    page = DOCS / "results.md"
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    text = before + BEGIN + made + END + after
    if args.check:
        if text != page.read_text():
            print(f"{page}: not what {CSV.name} says; run scripts/kernel_table.py", file=sys.stderr)
            return 1
        return 0
    page.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
