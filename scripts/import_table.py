# SPDX-License-Identifier: Apache-2.0
"""Write the table of imports in docs/understand/structure.md; ``--check`` only compares.

Its source is `MAY_IMPORT` of tests/test_boundaries.py, which the test holds the code to.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docs" / "understand" / "structure.md"
SOURCE = ROOT / "tests" / "test_boundaries.py"
PLACE = re.compile(r"(<!-- import_table.py: begin -->\n).*?(<!-- import_table.py: end -->)", re.S)


def rule() -> dict[str, list[str]]:
    """Package -> those it may import; `*` is every one."""
    for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "MAY_IMPORT":
            return {name: names.split() for name, names in ast.literal_eval(node.value).items()}
    raise ValueError(f"{SOURCE.relative_to(ROOT)} has no literal MAY_IMPORT")


def floors(may_import: dict[str, list[str]]) -> list[list[str]]:
    """Packages by floor: each imports from the floors before it alone; `*` is the last one."""
    left = {name: set(names) for name, names in may_import.items() if names != ["*"]}
    found: list[list[str]] = []
    while left:
        below = {name for floor in found for name in floor}
        free = sorted(name for name, names in left.items() if names <= below)
        found.append(free or sorted(left))
        for name in found[-1]:
            del left[name]
    return [*found, sorted(name for name, names in may_import.items() if names == ["*"])]


def table() -> str:
    """A line for each floor's packages that may import the same."""
    may_import = rule()
    lines = ["| Floor | Packages | May import |", "| --- | --- | --- |"]
    for number, floor in enumerate(floors(may_import), start=1):
        for names in sorted({tuple(may_import[name]) for name in floor}, key=lambda n: (len(n), n)):
            here = [f"`{name}`" for name in floor if tuple(may_import[name]) == names]
            allowed = ", ".join(f"`{name}`" for name in names) or "nothing"
            allowed = "everything" if names == ("*",) else allowed
            lines.append(f"| {number} | {', '.join(here)} | {allowed} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    page = FILE.read_text(encoding="utf-8")
    wanted, count = PLACE.subn(lambda match: match[1] + table() + match[2], page)
    if count != 1:
        sys.exit(f"{FILE.relative_to(ROOT)} has no place for the table")
    if "--check" not in arguments:
        FILE.write_text(wanted, encoding="utf-8")
    elif wanted != page:
        sys.exit(f"{FILE.relative_to(ROOT)} is out of date: run python scripts/import_table.py")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
