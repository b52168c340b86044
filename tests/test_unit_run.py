# SPDX-License-Identifier: Apache-2.0
"""`make check` cannot import SGLang in silence."""

import os
import re
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


def test_every_test_but_variants_is_in_one_of_the_two_runs(tmp_path):
    marks = ("", "@pytest.mark.slow", "", "@pytest.mark.variant")
    for folder, mark in zip((".", ".", "e2e", "e2e"), marks, strict=True):
        (tmp_path / folder).mkdir(exist_ok=True)
        name = f"test_{len(list(tmp_path.rglob('test_*')))}.py"
        text = f"import pytest\n{mark}\ndef test_it(): pass\n"
        (tmp_path / folder / name).write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  slow: it is\n  variant: it is\n")
    found = {}
    for part in ("--unit", "--rest"):
        command = [sys.executable, "-m", "pytest", "-p", "conftest", part, "--co", "-q", "."]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        found[part] = set(re.findall(r"^\S+(?=::)", done.stdout, re.M))
    assert found == {"--unit": {"test_0.py"}, "--rest": {"test_1.py", "e2e/test_2.py"}}
    steps = (Path(__file__).parents[1] / ".ci/run").read_text(encoding="utf-8")
    assert re.findall(r"^phase \w+ make (check|test\S*)$", steps, re.M) == ["check", "test-rest"]
