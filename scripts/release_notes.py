# SPDX-License-Identifier: Apache-2.0
"""The notes of a release, if everything that names its version names the same one.

    python scripts/release_notes.py v0.2.0 > notes.md

Prints the section of CHANGELOG.md. Ends with 1 if the tag is not the version of the package, of
the Helm chart or of CITATION.cff, where the changelog has no dated section for it, or where the
Dockerfile names a base by its tag alone: the tag may name another image tomorrow.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: Files that name the version, and the line that does.
VERSIONS = {
    "sglang_longflow/__init__.py": r'^__version__ = "(.+)"$',
    "deploy/helm/sglang-longflow/Chart.yaml": r"^version: (\S+)$",
    "CITATION.cff": r"^version: (\S+)$",
}


def problems(version: str, root: Path = ROOT) -> list[str]:
    """Files that name another version than this one."""
    found = {
        name: re.findall(pattern, (root / name).read_text(encoding="utf-8"), re.M)
        for name, pattern in VERSIONS.items()
    }
    return [
        f"{name}: version {' and '.join(named) or 'missing'}, expected {version}"
        for name, named in found.items()
        if named != [version]
    ]


def unpinned(dockerfile: str) -> list[str]:
    """Base images of a Dockerfile that have no digest, and how to learn it."""
    bases = re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", dockerfile, re.M)
    return [
        f"Dockerfile: {name}={base} has no digest; `docker buildx imagetools inspect {base}` has it"
        for name, base in bases
        if not re.search(r"@sha256:[0-9a-f]{64}$", base)
    ]


def notes(version: str, changelog: str) -> str:
    """The text below the dated heading of a version; empty if there is none."""
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"
    parts = re.split(heading, changelog, flags=re.M)
    return re.split(r"^## ", parts[1], flags=re.M)[0].strip() if len(parts) == 2 else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tag", help="such as v0.2.0")
    version = parser.parse_args().tag.removeprefix("v")
    text = notes(version, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    wrong = [
        *problems(version),
        *unpinned((ROOT / "Dockerfile").read_text(encoding="utf-8")),
    ]
    if not text:
        wrong.append(f"CHANGELOG.md: no section '## [{version}] - DATE' with text")
    for line in wrong:
        print(f"release_notes: {line}", file=sys.stderr)
    if not wrong:
        print(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
