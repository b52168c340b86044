# SPDX-License-Identifier: Apache-2.0
"""Gives every source file its licence header, or with --check names those without one.

Files are those that git knows, of the kinds in `COMMENTS`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADER = "SPDX-License-Identifier: Apache-2.0"
COMMENTS = {".py": "#", ".sh": "#", ".js": "//", ".mjs": "//"}


def sources(root: Path) -> list[Path]:
    """Tracked files of a checkout that have a header."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    paths = (root / name for name in listed.stdout.split("\0") if name)
    return sorted(path for path in paths if path.suffix in COMMENTS and path.is_file())


def with_header(text: str, comment: str) -> str:
    """`text` with the header in its first line, or in its second below a ``#!``."""
    header = f"{comment} {HEADER}\n"
    lines = text.splitlines(keepends=True)
    at = 1 if lines and lines[0].startswith("#!") else 0
    if lines[at : at + 1] == [header]:
        return text
    return "".join([*lines[:at], header, *lines[at:]])


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if one is missing")
    args = parser.parse_args(argv)
    missing = 0
    for path in sources(root):
        text = path.read_text(encoding="utf-8")
        wanted = with_header(text, COMMENTS[path.suffix])
        if wanted == text:
            continue
        missing += 1
        if args.check:
            print(f"{path.relative_to(root)}: no licence header; run python scripts/spdx.py")
        else:
            path.write_text(wanted, encoding="utf-8")
    if not args.check and missing:
        print(f"{missing} files have a header now")
    return 1 if args.check and missing else 0


if __name__ == "__main__":
    sys.exit(main())
