# SPDX-License-Identifier: Apache-2.0
"""The workflows: sound to actionlint, and what they name is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.deploy
ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
#: Their `run` steps and the composite action's.
STEPS = [*WORKFLOWS, ROOT / ".github/actions/environment/action.yml"]
OUR_FOLDERS = ("deploy", "docs", "requirements", "scripts", "sglang_longflow", "tests", "tools")


def actionlint(tools: Path, *files: Path) -> subprocess.CompletedProcess[str]:
    command = [tools / "venv/bin/actionlint", "-no-color", "-oneline", *files]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_the_workflows_are_those_that_contributing_names():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert {path.stem for path in WORKFLOWS} == {
        *("check", "deploy-tests", "lint", "nightly", "release", "test")
    }
    assert [path.stem for path in WORKFLOWS if f"`{path.stem}`" not in text] == []


def test_actionlint_is_content(tools):
    done = actionlint(tools, *WORKFLOWS)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "old", "new", "kind"),
    [
        ("release", "needs: version", "needs: nothing", "job-needs"),
        ("release", "attestations: write", "attestation: write", "permissions"),
        ("check", 'model: "false"', 'modell: "false"', "action"),
        ("test", "matrix.python }}\n    runs-on", "matrix.pyton }}\n    runs-on", "expression"),
    ],
)
def test_actionlint_would_complain(tools, tmp_path, name, old, new, kind):
    text = (ROOT / f".github/workflows/{name}.yml").read_text(encoding="utf-8")
    assert old in text
    folder = tmp_path / ".github"
    (folder / "workflows").mkdir(parents=True)
    (tmp_path / ".git").mkdir()  # what makes a folder a project, with local actions
    (folder / "actions").symlink_to(ROOT / ".github/actions")
    bad = folder / f"workflows/{name}.yml"
    bad.write_text(text.replace(old, new), encoding="utf-8")
    done = actionlint(tools, bad)
    assert done.returncode == 1 and f"[{kind}]" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("schema", "files"),
    [("github-workflows", WORKFLOWS), ("github-actions", STEPS[-1:])],
)
def test_schemas_of_github(tools, schema, files):
    command = [tools / "venv/bin/check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", STEPS, ids=lambda path: path.stem)
def test_files_targets_and_modules_that_steps_name_exist(path):
    text = re.sub(r"(^|\s)#.*", "", path.read_text(encoding="utf-8"))
    # Not behind another folder, a package or an address.
    names = set(re.findall(rf"(?<![\w./@:-])(?:{'|'.join(OUR_FOLDERS)})/[\w./*-]+", text))
    assert {name for name in names if not list(ROOT.glob(name.rstrip("/.")))} == set()
    modules = set(re.findall(r"\bsglang_longflow(?:\.\w+)+", text))
    files = {name: ROOT / name.replace(".", "/") for name in modules}
    there = {
        name for name, file in files.items() if file.is_dir() or file.with_suffix(".py").is_file()
    }
    assert modules - there == set()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^|run:|&&)\s*make ([a-z-]+)", text, re.M))
    assert {name for name in targets if not re.search(rf"^{name}:", makefile, re.M)} == set()
