# SPDX-License-Identifier: Apache-2.0
"""scripts/check_release.py on the installed SGLang, put into a wheel, and on one that differs."""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path

import pytest

from programs import load_program
from sglang_longflow.hooks.manifest import MANIFEST, PATCHES

ROOT = Path(__file__).parents[2]
METADATA = "Requires-Dist: torch=={torch}\nRequires-Dist: flashinfer_python[cu13]==0.7.2\n"


@pytest.fixture(scope="module")
def script():
    load_program("scripts/release_audit.py")  # which it imports from its own folder
    return load_program("scripts/check_release.py")


def make_wheel(folder: Path, version: str, torch: str, **edits: tuple[str, str]) -> Path:
    """A wheel with the sources that hooks wrap; `edits` by the name of a file: old, new."""
    package = Path(importlib.util.find_spec("sglang").origin).parent
    path = folder / f"sglang-{version}-cp312-cp312-manylinux_2_34_x86_64.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"sglang-{version}.dist-info/METADATA", METADATA.format(torch=torch))
        for module in {row.target for row in (*MANIFEST, *PATCHES)}:
            if not module.startswith("sglang."):
                continue
            words = module.split(".")[1:]
            while words and not (source := package.joinpath(*words).with_suffix(".py")).is_file():
                words.pop()
            text = source.read_text()
            if source.stem in edits:
                old, new = edits[source.stem]
                assert text.count(old) >= 1
                text = text.replace(old, new)
            name = "sglang/" + "/".join(words) + ".py"
            if name not in wheel.namelist():
                wheel.writestr(name, text)
    return path


def report(script, monkeypatch, capsys, *wheels):
    # These wheels hold only the hooked modules; test_release_audit.py tests the audit.
    monkeypatch.setattr(script, "audit", lambda wheel, package: [])
    monkeypatch.setattr(sys, "argv", ["check_release.py", *map(str, wheels)])
    return script.main(), capsys.readouterr().out


@pytest.mark.sglang
def test_the_installed_release_fits(script, monkeypatch, capsys, tmp_path):
    wheel = make_wheel(tmp_path, "0.5.23", "2.14.1")
    status, out = report(script, monkeypatch, capsys, wheel)
    assert status == 0
    assert f"0.5.23: {len(MANIFEST)} of {len(MANIFEST)} hook targets fit" in out
    assert "7 of 7 patch targets fit" in out
    assert "same packages as the pins" in out


@pytest.mark.sglang
def test_what_differs_is_named(script, monkeypatch, capsys, tmp_path):
    wheel = make_wheel(
        tmp_path,
        "0.5.99",
        "2.99.0",
        schedule_batch=("def _get_decode_retraction_order(", "def _get_retraction_order("),
        scheduler=("mm_input_error:", "input_error:"),
        xgrammar_backend=("def _allocate_token_bitmask(", "def _new_token_bitmask("),
    )
    status, out = report(script, monkeypatch, capsys, wheel)
    assert status == 1
    assert f"0.5.99: {len(MANIFEST) - 2} of {len(MANIFEST)} hook targets fit" in out
    assert "6 of 7 patch targets fit" in out
    assert "xgrammar_backend._allocate_token_bitmask: is missing" in out
    assert "ScheduleBatch._get_decode_retraction_order: is missing" in out
    assert (
        "handle_generate_request: other parameters: without mm_input_error; new input_error" in out
    )
    assert "needs torch 2.99.0 (here 2.14.1)" in out
