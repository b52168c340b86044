# SPDX-License-Identifier: Apache-2.0
"""How to install this package again, by what pip wrote down about where it came from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_longflow.settings import installed

ROOT = Path(__file__).resolve().parents[2]


def test_a_checkout_is_installed_again_from_itself():
    assert installed.checkout() == ROOT
    assert installed.reinstall_command().endswith(f"--no-deps -e {ROOT}")


def test_a_folder_or_a_wheel_that_is_still_there(tmp_path):
    wheel = tmp_path / "my wheels" / "sglang_longflow-1-py3-none-any.whl"
    wheel.parent.mkdir()
    record = {"url": wheel.as_uri(), "archive_info": {}}
    assert "%20" in record["url"]
    assert installed.pip_source(record, None) == ""  # gone
    wheel.touch()
    assert installed.pip_source(record, None) == f"'{wheel}'"


@pytest.mark.parametrize(
    ("record", "source"),
    [
        ({}, ""),
        ({"url": "https://example.org/x.whl"}, "https://example.org/x.whl"),
        (
            {"url": "https://example.org/x", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "git+https://example.org/x@abc",
        ),
        ({"url": "https://example.org/x;rm -r ."}, "'https://example.org/x;rm -r .'"),
    ],
)
def test_other_sources(record, source):
    assert installed.pip_source(record, None) == source


@pytest.mark.parametrize("text", ["", "[]", "no JSON", None])
def test_an_installation_without_a_record(tmp_path, text):
    """As a wheel found by --find-links leaves it, or one unpacked by hand."""
    info = tmp_path / "sglang_longflow-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang-longflow\nVersion: 1\n")
    if text is not None:
        (info / "direct_url.json").write_text(text)
    copy = tmp_path / "sglang_longflow" / "settings"
    copy.mkdir(parents=True)
    for folder in (copy, copy.parent):
        (folder / "__init__.py").touch()
    source = ROOT / "sglang_longflow/settings/installed.py"
    (copy / "installed.py").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    code = "from sglang_longflow.settings import installed as i, __file__ as f\n"
    code += "import json; print(json.dumps([f, i.direct_url(), i.reinstall_command()]))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    where, record, command = json.loads(done.stdout)
    assert where.startswith(str(tmp_path)) and record == {}
    assert command.startswith("in a checkout of sglang-longflow: pip install ")
    assert command.endswith(" --no-deps .")
