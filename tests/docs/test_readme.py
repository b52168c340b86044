# SPDX-License-Identifier: Apache-2.0
"""README.md: short, with commands that exist and numbers that were measured."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from plot_gain import POLICY, gains

from sglang_longflow.settings.config import LongFlowConfig

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST_SCREEN = README.partition("<!-- site: begin -->")[2].partition("<!-- site: end -->")[0]
NUMBER = re.compile(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?(?![\w-])")


def table() -> list[list[str]]:
    """Cells of the first screen's table, without its head."""
    rows = [line for line in FIRST_SCREEN.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_at_most_99_lines():
    assert len(README.splitlines()) <= 99


def test_the_table_has_the_numbers_of_the_csvs_for_the_default_policy():
    assert POLICY == LongFlowConfig.kv_policy
    assert f"| Default policy, `{POLICY}` |" in FIRST_SCREEN
    full, fifth, tenth = found = gains()
    assert [row[1:] for row in table()] == [
        [f"{gain.running_requests:.1f}" for gain in found],
        [f"{gain.output_tokens_per_s:,.0f}" for gain in found],
        [f"{100 * gain.right_answers:.1f} %" for gain in found],
    ]
    # The headline: about three times as many requests at a fifth.
    assert 2.7 < fifth.running_requests / full.running_requests < 3.3
    assert tenth.running_requests > fifth.running_requests


def test_every_number_of_the_table_stands_in_the_results_or_their_csvs():
    pages = [ROOT / "docs/results.md", ROOT / "docs/accuracy.md"]
    said = {n for page in pages for n in NUMBER.findall(page.read_text(encoding="utf-8"))}
    numbers = [number for row in table() for cell in row[1:] for number in NUMBER.findall(cell)]
    assert len(numbers) == 9
    assert [number for number in numbers if number not in said] == []


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


def test_the_plan_that_a_page_shows_is_what_longflow_plan_prints():
    page = (ROOT / "docs/choose-a-budget.md").read_text(encoding="utf-8")
    shown = page.partition("```\n$ longflow ")[2].partition("```")[0]
    command, _, printed = shown.partition("\n")
    done = subprocess.run(
        [sys.executable, "-m", "sglang_longflow.cli", *command.split()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == printed.strip()
