# SPDX-License-Identifier: Apache-2.0
"""scripts/fault_check.py: every fault fits its file; what counts as red."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import fault_check
from fault_check import FAULTS, PAGE, ROOT, Fault, copy_tree, read_faults

READ = read_faults()


@pytest.mark.parametrize("fault", READ, ids=lambda fault: fault.name)
def test_a_fault_fits_its_file_and_its_tests_exist(fault):
    text = (ROOT / fault.file).read_text(encoding="utf-8")
    changed = fault.applied(text)
    assert changed != text and fault.old not in changed.splitlines()
    if fault.file.endswith(".py"):
        compile(changed, fault.file, "exec")
    for test in fault.tests:
        file, _, name = test.partition("::")
        assert not name or f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), test


def test_every_package_that_decides_something_has_a_fault():
    areas = {fault.area.partition(":")[0] for fault in READ}
    assert areas >= {
        *("kernel", "policies", "core", "hooks", "backend", "settings", "server", "monitor"),
        *("planner", "deployment", "measure", "client", "docs", "demo", "platform", "reasoner"),
        "cli",
    }


def test_the_page_has_a_line_for_each():
    page = PAGE.read_text(encoding="utf-8")
    assert [f.name for f in READ if f"| {f.area} | {f.name} | `tests/" not in page] == []
    assert page.count("| `tests/") == len(READ)


@pytest.mark.parametrize("text", ["", "wanted, wanted"])
def test_a_line_that_is_not_there_once_is_an_error(text):
    fault = Fault("area", "name", "file", "wanted", "other", ())
    with pytest.raises(ValueError, match="places in file"):
        fault.applied(text)


@pytest.fixture
def repository(tmp_path):
    """A tree with one module, and one test of it."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "double.py").write_text("def double(x):\n    return 2 * x\n")
    (tmp_path / "test_double.py").write_text(
        "import sys; sys.path.insert(0, '.')\nfrom double import double\n\n"
        "def test_two():\n    assert double(2) == 4\n"
    )
    (tmp_path / "conftest.py").write_text("")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / ".gitignore").write_text("ignored\n")
    (tmp_path / "ignored").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("new", "red"),
    [
        ("3 * x", "test_double.py::test_two"),
        ("x + x", None),  # no fault at all
        ("2 * (x", None),  # an error is no failed test
    ],
)
def test_what_is_red(repository, tmp_path_factory, new, red):
    tree = tmp_path_factory.mktemp("copy")
    copy_tree(tree, repository)
    assert not (tree / "ignored").exists()
    fault = Fault("area", "name", "double.py", "2 * x", new, ("test_double.py",))
    assert fault_check.red_test(tree, fault)[0] == red
    assert (tree / "double.py").read_text() == (repository / "double.py").read_text()


def test_a_green_fault_fails_the_run(repository, monkeypatch, capsys):
    monkeypatch.setattr(fault_check, "ROOT", repository)
    monkeypatch.setattr(fault_check.copy_tree, "__defaults__", (repository,))
    good = Fault("area", "red one", "double.py", "2 * x", "3 * x", ("test_double.py",))
    faults = [good, dataclasses.replace(good, name="green one", new="x + x")]
    monkeypatch.setattr(fault_check, "read_faults", lambda: faults)
    assert fault_check.main([]) == 1
    out = capsys.readouterr().out
    assert "GREEN" in out and "1 of 2 faults" in out
    assert fault_check.main(["red one"]) == 0
    assert FAULTS.is_file()
