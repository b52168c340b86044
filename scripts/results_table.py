# SPDX-License-Identifier: Apache-2.0
"""Write the tables of docs/ from the CSVs in docs/results/; --check compares only.

    python scripts/results_table.py [--check]

A page names a table between two comments, `<!-- scripts/results_table.py NAME: begin -->` and
`<!-- scripts/results_table.py: end -->`. Every number in it is a value of a CSV, a ratio of two, or
what `longflow plan` of this checkout computes.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from result_tables import answers, goals, kernels, plan, rules, speed  # noqa: E402

DOCS = ROOT / "docs"
BEGIN = r"(<!-- scripts/results_table\.py (\S+): begin -->\n)"
END = r"(<!-- scripts/results_table\.py: end -->)"
MARKED = re.compile(f"{BEGIN}(.*?){END}", re.DOTALL)

TABLES: dict[str, Callable[[], str]] = {
    "headline": speed.headline,
    "goals": goals.goals_table,
    "gpu-tests": goals.gpu_tests,
    "running": speed.running_table,
    "releases": speed.releases,
    "settling": speed.settling,
    "sweep": speed.sweep,
    "published": speed.published,
    "default-cost": speed.default_cost,
    "set-aside": speed.set_aside,
    "prompt-cut": speed.prompt_cut,
    "plan": plan.plan_table,
    "kernels": kernels.all_kernels,
    "kernels-h100": kernels.h100_kernels,
    "l2": kernels.l2,
    "accuracy": answers.accuracy,
    "accuracy-goals": answers.accuracy_goals,
    "kl-math": answers.divergence("math"),
    "kl-gsm8k": answers.divergence("gsm8k"),
    "forms-of-novelty": answers.forms_of_novelty,
    "long-chains": answers.long_chains,
    "two-stages": answers.two_stages,
    "hugging-face-loop": speed.hugging_face_loop,
    "rules-reasoner": rules.explored_table(
        "reasoner-shipped", ("solved", "machine", "affine", "search", "wrong")
    ),
    "rules-smollm2": rules.explored_table(
        "smollm2", ("kl", "top1"), beside="smollm2-gsm8k", beside_metrics=("kl", "top1")
    ),
    "rules-added": rules.explored_table(
        "reasoner-search",
        ("search_solved", "wrong"),
        keep=lambda key: key[0] == "hide and drop",
        beside="smollm2",
        beside_metrics=("kl",),
        renamed=rules.added_novelty,
        only_shared=True,
    ),
    "rules-levels": rules.explored_table(
        "reasoner-long", ("solved", "wrong"), beside="smollm2-long", beside_metrics=("kl",)
    ),
    "rules-recall": rules.explored_table(
        "reasoner-recall",
        ("solved", "wrong"),
        told={"tokens": "Tokens", "seed": "Seed", "problems": "Chains"},
    ),
    "rules-hidden": rules.explored_table(
        "reasoner-hidden",
        ("solved", "machine", "affine", "search", "wrong"),
        told={"training": "Steps", "tokens": "Tokens"},
    ),
    "rules-hide": rules.explored_table(
        "reasoner-search", ("search_solved", "wrong"), keep=lambda key: key[0] == "hide"
    ),
}


def current(text: str) -> str:
    """A page's text with its tables as the CSVs have them."""
    return MARKED.sub(lambda found: found[1] + TABLES[found[2]]() + found[4], text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 if a page is not current")
    parser.add_argument("--show", choices=TABLES, help="print one table only")
    args = parser.parse_args()
    if args.show:
        print(TABLES[args.show](), end="")
        return 0
    stale = [
        page for page in sorted(DOCS.rglob("*.md")) if current(page.read_text()) != page.read_text()
    ]
    for page in stale:
        if args.check:
            print(
                f"{page}: not what docs/results says; run scripts/results_table.py", file=sys.stderr
            )
        else:
            page.write_text(current(page.read_text()))
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
