# SPDX-License-Identifier: Apache-2.0
"""`longflow demo` as a user runs it, shortened."""

import itertools
import os
import re
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from busy_loops import busy_loops, pin

pytestmark = pytest.mark.e2e


TIMEOUT_S = 900
#: Seconds between two lines of the demo, at most.
SIGN_OF_LIFE_S = 15.0


def demo(*arguments: str, core: int | None = None) -> str:
    """`longflow demo`; with a `core` on that one alone."""
    command = [sys.executable, "-W", "ignore", "-m", "sglang_longflow.cli", "demo", *arguments]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            preexec_fn=lambda: pin(core),
        ) as running,
    ):
        watchdog = threading.Timer(TIMEOUT_S, running.kill)
        watchdog.start()
        lines, times = [], [time.monotonic()]
        for line in running.stdout:
            lines.append(line)
            times.append(time.monotonic())
        watchdog.cancel()
        status = running.wait()
        errors.seek(0)
        assert status == 0, errors.read()
    silences = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(silences) < SIGN_OF_LIFE_S, list(zip(silences, lines))
    stamps = [int(match[1]) for line in lines if (match := re.match(r"\[ *(\d+)s\] ", line))]
    assert stamps == sorted(stamps) and len(stamps) >= 4  # one clock
    return "".join(lines)


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


def test_questions_on_half_a_core(smollm2):
    """One core, which another program wants as well. scripts/repeat_demo.py does it at length."""
    core = min(os.sched_getaffinity(0))
    more = ("--requests=2", "--budget=40", "--max-new-tokens=6", "--pool=300")
    with busy_loops(1, core):
        text = demo(f"--model={smollm2}", *more, core=core)
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
