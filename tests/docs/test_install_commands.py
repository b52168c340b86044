# SPDX-License-Identifier: Apache-2.0
"""No text tells anyone to install this package from an index by its name alone.

The name is not registered anywhere: whoever registers it would own the machines of all who follow
such a line.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: An installer, then on the same line this project's name as a word of its own: no path, no file.
BY_NAME = re.compile(
    r"\b(?:pipx?3?|uv(?: pip)?|uv tool|conda|poetry)\s+(?:install|download|add|run)\b[^\n`]*?"
    r"(?<![\w./:@-])sglang[-_]longflow(?![\w./:-])",
    re.IGNORECASE,
)
#: That speak of such commands: they are the rule.
EXEMPT = {"tests/docs/test_install_commands.py"}


def texts() -> list[Path]:
    """Files of the repository that a person, a shell or a user's terminal reads."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    kinds = {".md", ".py", ".sh", ".toml", ".yaml", ".yml", ".txt", ".js", ".html", ".tpl", ""}
    names = [name for name in listed.stdout.splitlines() if name not in EXEMPT]
    return [p for name in names if (p := ROOT / name).is_file() and p.suffix in kinds]


def found(text: str) -> list[str]:
    """Such commands, but those that look at no index (--no-index)."""
    return [match[0] for match in BY_NAME.finditer(text) if " --no-index " not in match[0]]


@pytest.mark.parametrize(
    "line",
    [
        "pip install sglang-longflow",
        "pip install --force-reinstall --no-deps sglang-longflow",
        "pip install 'sglang-longflow[eval]'",
        "pip install sglang-longflow==0.2.0",
        "uv pip install sglang_longflow again",
    ],
)
def test_such_a_line_is_found(line):
    assert found(f"fix: {line}\n")


@pytest.mark.parametrize(
    "line",
    [
        "pip install -c requirements/constraints.txt .",
        "pip install dist/sglang_longflow-0.2.0-py3-none-any.whl",
        "pip install -e '/src/sglang-longflow'",
        "pip install sglang==0.5.23, or a newer checkout",
        "pip install --no-index --find-links wheelhouse sglang-longflow",
        "helm install longflow deploy/helm/sglang-longflow",
    ],
)
def test_another_line_is_not(line):
    assert found(line) == []


def test_no_file_has_one():
    files = texts()
    assert len(files) > 300
    bad = {
        file.relative_to(ROOT).as_posix(): lines
        for file in files
        if (lines := found(file.read_text(encoding="utf-8", errors="replace")))
    }
    assert bad == {}
