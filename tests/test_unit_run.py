# SPDX-License-Identifier: Apache-2.0
"""`make check` cannot import SGLang in silence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
FILE = """
import contextlib
import importlib.util

{mark}
def test_of_code_that_takes_the_refusal():
    with contextlib.suppress(ImportError):
        import sglang

def test_beside_it():
    pass
"""


def unit_run(folder: Path, text: str) -> subprocess.CompletedProcess:
    """Of one file, under the conftest.py beside this one."""
    (folder / "test_one.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "--unit", "-q", "."]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_a_refused_import_is_an_error_even_if_it_is_caught(tmp_path):
    done = unit_run(tmp_path, FILE.format(mark=""))
    assert done.returncode == 1, done.stdout
    assert "SGLang was imported in a unit test" in done.stdout
    assert "2 passed, 1 error" in done.stdout


def test_a_marked_test_is_left_out(tmp_path):
    marked = FILE.format(mark="import pytest\n@pytest.mark.sglang")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  sglang: needs it\n")
    done = unit_run(tmp_path, marked)
    assert done.returncode == 0 and "1 passed, 1 deselected" in done.stdout, done.stdout


def test_a_marked_file_is_not_even_imported(tmp_path):
    done = unit_run(tmp_path, "pytestmark = pytest.mark.e2e\nimport pytest, no_such_module\n")
    assert done.returncode == 5 and "no tests ran" in done.stdout, done.stdout
