# SPDX-License-Identifier: Apache-2.0
"""Every `longflow plan` command of the documentation runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sglang_longflow.cli.main import main
from sglang_longflow.reasoner import MODEL_DIR

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: In a line of a code block, after a prompt or not, or in a code span that has flags.
COMMAND = re.compile(r"^(?:\$ )?(longflow plan .*)$|`(longflow plan -[^`]*)`", re.MULTILINE)
COMMANDS = sorted(
    {
        (page.relative_to(ROOT).as_posix(), line or span)
        for page in PAGES
        for line, span in COMMAND.findall(page.read_text(encoding="utf-8"))
        if span != "longflow plan --json"  # the name of its output
    }
)


def test_pages_have_such_commands():
    assert {page for page, _ in COMMANDS} >= {
        "docs/choose-a-budget.md",
        "docs/models.md",
        "docs/reference/plan.md",
    }


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_it_runs(page, command, capsys):
    words = shlex.split(command, comments=True)[1:]
    words = [str(MODEL_DIR) if word == "./my-model" else word for word in words]
    assert main(words) == 0, f"{page}: {command}: {capsys.readouterr().err}"
