# SPDX-License-Identifier: Apache-2.0
"""scripts/check_release.py on the installed SGLang, as it is and with older releases' seams."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import zipfile
from pathlib import Path

import pytest

from programs import load_program
from sglang_longflow.hooks.extensions import EXTENSIONS
from sglang_longflow.hooks.manifest import MANIFEST, PATCHES
from sglang_longflow.settings.release import TESTED_SGLANG

pytestmark = [pytest.mark.sglang, pytest.mark.slow]
OF_SGLANG = [row for row in PATCHES if row.target.startswith("sglang.")]
FITS = [
    f"  {len(MANIFEST)} of {len(MANIFEST)} hook targets fit",
    f"  {len(OF_SGLANG)} of {len(OF_SGLANG)} patch targets fit",
    f"  {len(EXTENSIONS)} of {len(EXTENSIONS)} extension points fit",
    "  0 things that handlers touch are not there",
    "  same packages as the pins",
]
#: What other releases have in place of today's: a file, today's text, theirs, and what is said.
SEAMS = [
    # 0.5.22
    ("managers/scheduler.py", "send_abort_output", "_send_abort", "Scheduler has no send_abort_"),
    # 0.5.21
    ("mem_cache/base_prefix_cache.py", "class TreeLock", "class Lock", "TreeLock is missing"),
    ("mem_cache/allocation.py", "ALLOC_FOR_DECODE_FUNCS", "_F", "no ALLOC_FOR_DECODE_FUNCS"),
    ("managers/schedule_batch.py", "extend_end", "extend_range", "Req has no extend_end"),
    ("managers/scheduler.py", "def get_prefill_adder_class(", "def g(", "adder_class: is missing"),
    # 0.5.19
    ("mem_cache/prefill_budget.py", "class PrefillBudget", "class B", "PrefillBudget is missing"),
    ("arg_groups/resolution_hooks.py", '"handle_missing_default', '"handle_', "have no step"),
    # 0.5.18
    ("mem_cache/registry.py", "UnifiedRadixCache", "RadixCache", "prefix tree: RadixCache"),
    (
        "managers/schedule_batch.py",
        "def _get_decode_retraction_order(",
        "def _get_decode_retraction_order(server_args, ",
        "retraction_order: other parameters: new server_args",
    ),
    # none yet
    ("constrained/xgrammar_backend.py", "def apply_vocab_mask(", "def mask(", "_mask: is missing"),
    ("managers/scheduler.py", "mm_input_error:", "error:", "without mm_input_error; new error"),
]


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """Every Python file of the installed SGLang, and its metadata, by their names in a wheel."""
    release = importlib.metadata.distribution("sglang")
    names = [
        str(file)
        for file in release.files or ()
        if re.match(r"sglang/.*\.py$|[^/]*\.dist-info/METADATA$", str(file))
    ]
    return {name: Path(release.locate_file(name)).read_text(encoding="utf-8") for name in names}


def report(monkeypatch, capsys, folder: Path, sources: dict[str, str]) -> tuple[int, list[str]]:
    """Exit status and lines of the command on a wheel of these files."""
    wheel = folder / f"sglang-{TESTED_SGLANG[-1]}-cp312-cp312-manylinux_2_34_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in sources.items():
            archive.writestr(name, text)
    load_program("scripts/release_audit.py")  # which it imports from its own folder
    script = load_program("scripts/check_release.py")
    monkeypatch.setattr(sys, "argv", ["check_release.py", str(wheel)])
    status = script.main()
    return status, capsys.readouterr().out.splitlines()


def test_the_installed_release_fits(monkeypatch, capsys, tmp_path, sources):
    assert len(sources) > 1000
    status, lines = report(monkeypatch, capsys, tmp_path, sources)
    assert lines == [f"{TESTED_SGLANG[-1]}:", *FITS]
    assert status == 0


def test_what_other_releases_have_is_named(monkeypatch, capsys, tmp_path, sources):
    changed = dict(sources)
    for file, today, theirs, _ in SEAMS:
        name = f"sglang/srt/{file}"
        assert today in changed[name], f"{today} is no longer in {file}"
        changed[name] = changed[name].replace(today, theirs)
    metadata = next(name for name in sources if name.endswith("/METADATA"))
    changed[metadata] = re.sub(
        r"(?m)^(Requires-Dist: torch)==.*$", r"\1==2.99.0", sources[metadata]
    )
    status, lines = report(monkeypatch, capsys, tmp_path, changed)
    assert status == 1
    assert [says for *_, says in SEAMS if not any(says in line for line in lines)] == []
    assert f"  {len(MANIFEST) - 3} of {len(MANIFEST)} hook targets fit" in lines
    assert f"  {len(OF_SGLANG) - 1} of {len(OF_SGLANG)} patch targets fit" in lines
    assert lines[-1].startswith("  needs torch 2.99.0 (here ")
