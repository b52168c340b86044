# SPDX-License-Identifier: Apache-2.0
"""The repository's address is one, and CONTRIBUTING.md names each file that must change with it."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = re.compile(r"https://[\w.-]+/[\w.-]+/sglang-longflow\b")


def test_one_address_in_the_files_that_contributing_names():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    home = urls["Homepage"]
    assert ADDRESS.fullmatch(home) and all(url.startswith(home) for url in urls.values())
    command = ["git", "grep", "-lI", "--untracked", "-E", r"https://[^ )>\"]+/sglang-longflow\b"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    files = {}
    for name in listed.stdout.splitlines():
        found = set(ADDRESS.findall((ROOT / name).read_text(encoding="utf-8")))
        if found and not name.startswith("tests/"):
            files[name] = found
    assert files and set.union(*files.values()) == {home}
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    sentence = contributing.partition("The repository's address stands in ")[2].partition(".\n")[0]
    assert set(re.findall(r"`([^`]+)`", sentence)) == set(files)
