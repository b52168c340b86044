"""`longflow demo` as a user runs it, shortened."""

import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.e2e


def demo(*arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", "-m", "sglang_longflow.cli", "demo", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(text: str, title: str) -> list[list[str]]:
    """The words of a table's lines below its heading."""
    lines = text.split(title, 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if "───" in line)
    found = []
    for line in lines[start + 1 :]:
        if not line.strip():
            break
        found.append(line.split())
    return found


def test_questions(smollm2):
    text = demo(
        *(f"--model={smollm2}", "--requests=2", "--budget=40", "--max-new-tokens=6"), "--pool=300"
    )
    table = rows(text, "Requests with a budget of 40 KV slots")
    assert len(table) == 2
    for number, prompt, generated, length, budget, slots, saved in table:
        assert number in "12" and (generated, budget, slots) == ("6", "40", "40")
        assert int(length) == int(prompt) + 6
        assert saved == f"{1 - 40 / (int(prompt) + 5):.0%}"
    assert "Answers\n" not in text and "What is shown is memory" in text


def test_the_reasoner_solves_with_full_kv_what_a_tiny_budget_breaks():
    """A chain of 2,000 tokens is too long for CI; the first problem of a kind is a short one."""
    text = demo("--reasoner", "--requests=1", "--budget=400", "--max-new-tokens=90", "--pool=600")
    ((_, prompt, generated, *_, slots, saved),) = rows(text, "Requests with a budget of 400")
    assert (generated, int(slots)) == ("90", int(prompt) + 89) and saved == "0%"
    ((number, kind, *answer, ours, theirs),) = rows(text, "Answers")
    assert (number, kind) == ("1", "machine") and len(answer) == 4
    assert (ours, theirs) == ("wrong", "wrong")  # cut off
    first = re.search(r"Start of answer 1, with the budget:\n +(.*)", text)[1]
    assert re.match(r"A \d \d A a \d ;", first), first  # its constants, worked out first
