# SPDX-License-Identifier: Apache-2.0
"""Puts one deliberate fault after another into a copy of the tree; a test must turn red each time.

    python scripts/fault_check.py              # all of scripts/faults.toml: about 3 minutes
    python scripts/fault_check.py planner      # those whose area or name has this word
    python scripts/fault_check.py --write      # and the table of docs/understand/testing.md

First all of those tests must be green in the copy as it is. A fault's tests stop at the first one
that fails. Ends with 1 if a fault stays green, or if pytest ends otherwise than by a failed test.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FAULTS = Path(__file__).with_name("faults.toml")
PAGE = ROOT / "docs" / "understand" / "testing.md"
PLACE = re.compile(r"(<!-- fault_check.py: begin -->\n).*?(<!-- fault_check.py: end -->)", re.S)
FAILED = re.compile(r"^FAILED (\S+?)(?:\[.*)?(?: - .*)?$", re.M)
PASSED, SOME_FAILED = 0, 1  # pytest's exit statuses


@dataclass(frozen=True)
class Fault:
    """A change of one line or a few; `tests` are pytest's names of files and tests."""

    area: str
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """The file's text with the fault in it.

        Raises
        ------
        ValueError
            `old` does not stand in it exactly once, or `new` is the same.
        """
        if (count := text.count(self.old)) != 1 or self.new == self.old:
            raise ValueError(f"{self.name}: {count} places in {self.file} for {self.old!r}")
        return text.replace(self.old, self.new)


def read_faults(file: Path = FAULTS) -> list[Fault]:
    rows = tomllib.loads(file.read_text(encoding="utf-8"))["fault"]
    return [Fault(**{**row, "tests": tuple(row["tests"])}) for row in rows]


def git(*arguments: str, root: Path = ROOT) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout


def copy_tree(to: Path, root: Path = ROOT) -> None:
    """Every file that git knows or would take, as it lies in the checkout."""
    for name in git(
        "ls-files", "-z", "--cached", "--others", "--exclude-standard", root=root
    ).split("\0"):
        if name and (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[int, str]:
    """pytest's status and output, with the modules of `tree` before those that are installed."""
    command = [sys.executable, "-m", "pytest", "-qx", "-rf", "--tb=no", "-p", "no:cacheprovider"]
    path = os.pathsep.join([str(tree), str(tree / "kernels")])
    done = subprocess.run(
        [*command, *tests],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "300"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def red_test(tree: Path, fault: Fault) -> tuple[str | None, str]:
    """The test that a fault turns red, without its parameters, and what pytest printed."""
    file = tree / fault.file
    before = file.read_text(encoding="utf-8")
    file.write_text(fault.applied(before), encoding="utf-8")
    try:
        status, output = run_tests(tree, fault.tests)
    finally:
        file.write_text(before, encoding="utf-8")
    found = FAILED.search(output)
    return (found[1] if found and status == SOME_FAILED else None), output


def table(results: Sequence[tuple[Fault, str | None]]) -> str:
    """A line for each fault: where, what, and the test that it turned red."""
    lines = ["| Area | Fault | Red |", "| --- | --- | --- |"]
    lines += [f"| {fault.area} | {fault.name} | `{red}` |" for fault, red in results]
    return "\n".join(lines) + "\n"


def heading(faults: int) -> str:
    """When, and on what."""
    status = git("status", "--porcelain").splitlines()
    changed = any(PAGE.name not in line for line in status)
    commit = git("rev-parse", "--short", "HEAD").strip() + (" with changes" if changed else "")
    day = time.strftime("%Y-%m-%d")
    return f"{day}, commit {commit}: {faults} of {faults} faults turn a test red.\n\n"


def write(results: Sequence[tuple[Fault, str | None]]) -> None:
    made = heading(len(results)) + table(results)
    page, count = PLACE.subn(
        lambda match: f"{match[1]}{made}{match[2]}", PAGE.read_text(encoding="utf-8")
    )
    if count != 1:
        sys.exit(f"{PAGE.relative_to(ROOT)} has no place for the table")
    PAGE.write_text(page, encoding="utf-8")


def checked(tree: Path, faults: Sequence[Fault]) -> Iterator[tuple[Fault, str | None]]:
    """Each fault with the test that it turns red; says so at once."""
    for fault in faults:
        begin = time.monotonic()
        red, output = red_test(tree, fault)
        seconds = time.monotonic() - begin
        print(f"{'red' if red else 'GREEN':5} {seconds:3.0f} s  {fault.area}: {fault.name}")
        print(f"             {red}" if red else output[-2000:], flush=True)
        yield fault, red


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only faults whose area or name has one of them")
    parser.add_argument("--write", action="store_true", help="write the table of the page")
    args = parser.parse_args(argv)
    faults = [
        fault
        for fault in read_faults()
        if not args.words or any(word in f"{fault.area}: {fault.name}" for word in args.words)
    ]
    if args.write and args.words:
        parser.error("--write needs all of them")
    if not faults:
        parser.error("no such fault")
    with tempfile.TemporaryDirectory(prefix="longflow-faults-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        names = dict.fromkeys(name for fault in faults for name in fault.tests)
        status, output = run_tests(tree, list(names))
        if status != PASSED:
            print(f"not green without a fault\n{output[-4000:]}")
            return 1
        results = list(checked(tree, faults))
    red = sum(bool(found) for _, found in results)
    print(f"{red} of {len(results)} faults turn a test red")
    if red < len(results):
        return 1
    if args.write:
        write(results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
