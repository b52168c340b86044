# SPDX-License-Identifier: Apache-2.0
"""docs/understand/proposals.md: the patches fit the installed SGLang and do what the page says."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/understand/proposals.md"
PATCHES = sorted((ROOT / "docs/understand/proposals").glob("*.patch"))
CHECKS = ROOT / "tests/docs/proposals"


def sglang() -> Path:
    """Where the installed SGLang lies; it is not imported."""
    spec = importlib.util.find_spec("sglang")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


@pytest.fixture(scope="module")
def patched(tmp_path_factory) -> Path:
    """A folder with a copy of SGLang's Python, all three patches applied in their order."""
    place = tmp_path_factory.mktemp("patched")
    shutil.copytree(
        sglang(),
        place / "sglang",
        ignore=shutil.ignore_patterns("__pycache__", "multimodal_gen", "*.so"),
    )
    for file in sglang().rglob("*.so"):  # the tree's core in Rust among them
        target = place / "sglang" / file.relative_to(sglang())
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file)
    for patch in PATCHES:
        done = subprocess.run(
            ["git", "apply", "--verbose", str(patch)],
            cwd=place,
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(place.parent)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "Skipped" not in done.stderr, done.stderr
    return place


def test_each_patch_is_linked_and_counted():
    page = PAGE.read_text(encoding="utf-8")
    assert [f"](proposals/{patch.name})" in page for patch in PATCHES] == [True] * 3
    counted = [int(number) for number in re.findall(r"^\| \[[^|]*\| (\d+) \|", page, re.MULTILINE)]
    added = [
        len(re.findall(r"^\+(?!\+\+ )", patch.read_text(encoding="utf-8"), re.MULTILINE))
        for patch in PATCHES
    ]
    assert counted == added


@pytest.mark.parametrize(
    ("check", "core"),
    [("arguments", "python"), ("rows", "python"), ("rows", "rust"), ("attention", "python")],
)
def test_a_patched_sglang_does_what_the_page_says(patched, check, core):
    environment = {
        **os.environ,
        "PYTHONPATH": str(patched),
        "SGLANG_PLUGINS": "none",
        "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND": core,
    }
    done = subprocess.run(
        [sys.executable, str(CHECKS / f"{check}.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"checked {patched / 'sglang' / '__init__.py'}"
