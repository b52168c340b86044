"""README.md: short, with commands that exist and numbers that were measured."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from sglang_longflow.policies import DEFAULT_POLICY

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST_SCREEN = README.partition("<!-- site: begin -->")[2].partition("<!-- site: end -->")[0]
NUMBER = re.compile(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?(?![\w-])")


def measured() -> set[str]:
    """Every number that stands in docs/results.md or docs/accuracy.md."""
    pages = [ROOT / "docs/results.md", ROOT / "docs/accuracy.md"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    return set(NUMBER.findall(text))


def table_numbers() -> list[str]:
    rows = [line for line in FIRST_SCREEN.splitlines() if line.startswith("|")]
    return [number for row in rows for number in NUMBER.findall(row)]


def test_at_most_120_lines():
    assert len(README.splitlines()) <= 120


def test_the_table_is_of_the_default_policy_and_each_number_of_it_was_measured():
    assert f"`{DEFAULT_POLICY}`" in FIRST_SCREEN.splitlines()[next_table_line()]
    numbers = table_numbers()
    assert len(numbers) >= 12
    assert [number for number in numbers if number not in measured()] == []


def next_table_line() -> int:
    return next(i for i, line in enumerate(FIRST_SCREEN.splitlines()) if line.startswith("|"))


def test_a_number_that_nobody_measured_would_be_seen():
    assert "8,305" not in measured() and "91.5" not in measured()


def test_it_says_which_sglang_is_served():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (pin,) = [d for d in project["dependencies"] if d.startswith("sglang==")]
    assert f"SGLang {pin.removeprefix('sglang==')}" in FIRST_SCREEN


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).splitlines()
    return [
        line.partition("#")[0].strip() for line in lines if re.match(r"(make|longflow)\b", line)
    ]


@pytest.mark.parametrize(
    "command", ["make demo", "make check", "make test", "make test-deploy", "make test-deploy-long"]
)
def test_the_first_command_and_the_test_commands_are_there(command):
    assert command in commands()


def test_every_make_target_in_readme_and_contributing_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w -]+):(?!=)", makefile, re.MULTILINE))
    targets = {name for names in targets for name in names.split()}
    text = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE))
    assert len(named) >= 5
    assert named - targets == set()


def test_every_longflow_command_in_the_pages_exists():
    from sglang_longflow.cli.main import COMMANDS

    docs = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in docs)
    named = set(re.findall(r"(?:`|^|\$ )longflow ([a-z]+)\b", text, re.MULTILINE))
    assert {"serve", "plan", "eval", "bench", "doctor"} <= named
    assert named - set(COMMANDS) == set()
