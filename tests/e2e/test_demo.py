# SPDX-License-Identifier: Apache-2.0
"""`longflow demo` as a user runs it, shortened."""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from busy_loops import pin

pytestmark = pytest.mark.e2e


TIMEOUT_S = 1800
#: Seconds between two lines of the demo, at most, but for those in which it waited for a processor.
SIGN_OF_LIFE_S = 15.0


def waited_s(pid: int) -> dict[str, float]:
    """Seconds that each thread of a process has waited for a processor that others had."""
    found = {}
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # it ends
            found[file.parent.name] = int(file.read_text().split()[1]) / 1e9
    return found


def demo(*arguments: str, core: int | None = None, **variables: str) -> str:
    """`longflow demo`; with a `core` on that one alone."""
    command = [sys.executable, "-W", "ignore", "-m", "sglang_longflow.cli", "demo", *arguments]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **variables},
            preexec_fn=lambda: pin(core),
        ) as running,
    ):
        watchdog = threading.Timer(TIMEOUT_S, running.kill)
        watchdog.start()
        lines, silences = [], []
        since, waited = time.monotonic(), waited_s(running.pid)
        for line in running.stdout:
            now, waited_now = time.monotonic(), waited_s(running.pid)
            held_up = [after - waited.get(thread, 0.0) for thread, after in waited_now.items()]
            lines.append(line)
            silences.append(now - since - max(held_up, default=0.0))
            since, waited = now, waited_now
        watchdog.cancel()
        status = running.wait()
        errors.seek(0)
        assert status == 0, errors.read()
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


def test_questions_on_one_core(smollm2):
    """Everything on one core. scripts/repeat_demo.py does it at length, beside busy loops."""
    core = min(os.sched_getaffinity(0))
    more = ("--questions", "--requests=2", "--budget=40", "--max-new-tokens=6", "--pool=300")
    text = demo(f"--model={smollm2}", *more, core=core)
    table = rows(text, "Requests with a budget of 40 KV slots")
    assert len(table) == 2
    for number, prompt, generated, length, budget, slots, saved in table:
        assert number in "12" and (generated, budget, slots) == ("6", "40", "40")
        assert int(length) == int(prompt) + 6
        assert saved == f"{1 - 40 / (int(prompt) + 5):.0%}"
    assert "Answers\n" not in text and "What is shown is memory" in text


def test_a_chain_comes_out_right_with_a_budget(tmp_path):
    """A chain of 2,000 tokens is too long for CI; this one has 350. Nothing is downloaded."""
    nowhere = "http://127.0.0.1:9"
    text = demo(
        *("--chain-tokens=350", "--requests=1", "--budget=300"),
        LONGFLOW_CACHE=str(tmp_path / "cache"),
        **{"HF_ENDPOINT": nowhere, "PIP_INDEX_URL": nowhere},
    )
    assert not (tmp_path / "cache").exists()
    assert re.search(r"ready in \d+ s; watch it at http://127\.0\.0\.1:\d+/longflow\n", text)
    ((_, kind, prompt, chain, slots, _, full, _, saved),) = rows(text, "Requests with a budget of")
    assert kind == "machine" and int(full) == int(prompt) + int(chain) - 1
    assert slots == "300" and saved == f"{1 - 300 / int(full):.0%}"
    ((_, _, *answers, ours, theirs),) = rows(text, "Answers\n")
    assert answers[:4] == answers[4:] and (ours, theirs) == ("right", "right")
    first = re.search(r"Start of answer 1, with the budget:\n +(.*)", text)[1]
    assert re.match(r"[A-L] \d \d [A-L] a \d ;", first), first  # its constants, worked out first
    lines = re.findall(r"^\[ *\d+s\] budget 300: problem 1 \(machine\) is right: .*", text, re.M)
    assert len(lines) == 1 and f"{full} tokens in 300 slots" in lines[0]
