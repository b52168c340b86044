# SPDX-License-Identifier: Apache-2.0
"""docs/operate/troubleshooting.md has a server's messages, and each of its own is in the source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sglang_longflow"
DOCUMENT = (ROOT / "docs" / "operate" / "troubleshooting.md").read_text(encoding="utf-8")
#: What an operator or a client of a server can see; the messages of other commands may be missing.
SERVING = [
    path
    for name in (
        *("backend", "core", "hooks", "measure/throughput", "client/budget.py"),
        *(
            f"settings/{name}.py"
            for name in (
                *("config", "compatibility", "flags", "refused_models", "release"),
                *("preflight", "context"),
            )
        ),
        *(f"server/{name}.py" for name in ("options", "preflight", "process", "serve", "settings")),
    )
    for path in ([PACKAGE / name] if name.endswith(".py") else (PACKAGE / name).rglob("*.py"))
]
#: Their messages are for people outside the code.
KINDS = ("ConfigError", "BudgetError", "BenchError", "UnsupportedSetup", "HookNotApplied",
         "ServerEnded", "Problem", "RuntimeError", "ValueError", "HTTPException",
         "stop", "stop_server")  # fmt: skip
FEWEST_LETTERS = 8


def text_of(node: ast.AST) -> str:
    """A message with ``…`` for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return "…"


def says_something(message: str) -> bool:
    return len(re.sub(r"[^a-z]", "", message)) >= FEWEST_LETTERS


def texts_in(path: Path) -> set[str]:
    """Every text of a file, whole."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Constant, ast.JoinedStr, ast.BinOp)
    return {text_of(here) for here in ast.walk(tree) if isinstance(here, kinds)}


def raised_in(path: Path) -> set[str]:
    """Messages of the exceptions a file makes; of lists of refusals, every f-string returned."""
    found = set()
    for here in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(here, ast.Return) and path.name in ("compatibility.py", "refused_models.py"):
            found |= {text_of(n) for n in ast.walk(here) if isinstance(n, ast.JoinedStr)}
        if isinstance(here, ast.Assign) and ast.unparse(here.targets[0]) == "what":
            found.add(text_of(here.value))  # of a Problem; its fix says itself what to do
        if isinstance(here, ast.Call) and here.args:
            name = ast.unparse(here.func).split(".")[-1]
            if name in KINDS:
                found.add(text_of(here.args[-1 if name == "HTTPException" else 0]))
    return {message for message in found if says_something(message)}


def documented() -> list[str]:
    """First cells of the tables under the heads "Message"."""
    found, in_table = [], False
    for line in DOCUMENT.splitlines():
        cell = line.split(" | ")[0].removeprefix("| ")
        in_table = line.startswith("|") and (in_table or cell == "Message")
        if in_table and cell.startswith("`"):
            found.append(cell.strip("`"))
    return found


MESSAGES = documented()
SOURCE = {text for path in PACKAGE.rglob("*.py") for text in texts_in(path)}


def test_the_document_was_read():
    assert len(MESSAGES) > 60 and len(set(MESSAGES)) == len(MESSAGES)
    assert all(
        line[1:-1].count("|") == 2 for line in DOCUMENT.splitlines() if line.startswith("| ")
    )


@pytest.mark.parametrize("message", MESSAGES)
def test_a_documented_message_is_in_the_source(message):
    assert message in SOURCE


@pytest.mark.parametrize("path", sorted(SERVING), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_what_a_server_says_is_documented(path):
    """Add a row ``| `MESSAGE` | cause | fix |`` for what is missing."""
    known = set(MESSAGES)
    missing = {message for message in raised_in(path) if message not in known}
    assert {m for m in missing if m not in DOCUMENT.replace("\n", " ")} == set()
