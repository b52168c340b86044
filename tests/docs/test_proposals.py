# SPDX-License-Identifier: Apache-2.0
"""docs/understand/proposals.md: the patches fit the installed SGLang and do what the page says.

The patched copy is made of what is installed, so nothing is fetched. Where another release than the
page's is installed, or none, the tests skip and say which.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
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
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("SGLang is not installed: there is nothing to patch")
    if (installed := importlib.metadata.version("sglang")) != release_of_the_page():
        pytest.skip(f"SGLang {installed} is installed, the patches are for {release_of_the_page()}")
    return Path(next(iter(spec.submodule_search_locations)))


def release_of_the_page() -> str:
    """The release that the page's first sentence names."""
    found = re.search(r"changes to SGLang (\d+\.\d+\.\d+) ", PAGE.read_text(encoding="utf-8"))
    assert found is not None
    return found.group(1)


def has_rust_core(package: Path) -> bool:
    """Whether the tree's core in Rust is built for this Python; SGLang else takes its own."""
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    return any(package.rglob(f"mem_cache*{suffix}") for suffix in suffixes)


@pytest.fixture(scope="module")
def patched(tmp_path_factory) -> Path:
    """A folder with a copy of SGLang's Python, all three patches applied in their order."""
    place = tmp_path_factory.mktemp("patched")
    shutil.copytree(
        sglang(),
        place / "sglang",
        ignore=shutil.ignore_patterns("multimodal_gen", "*.so"),
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


@pytest.mark.sglang
@pytest.mark.parametrize(
    ("check", "core"),
    [("arguments", "python"), ("rows", "python"), ("rows", "rust"), ("attention", "python")],
)
def test_a_patched_sglang_does_what_the_page_says(patched, check, core):
    if core == "rust" and not has_rust_core(patched):
        pytest.skip("this SGLang has no core of the tree in Rust for this Python")
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
