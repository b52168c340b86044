# SPDX-License-Identifier: Apache-2.0
"""Watching decides nothing: a scheduler that is busy for 20 seconds, then one that is killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import harness
from sglang_longflow.demo.ask import run_phase
from sglang_longflow.demo.questions import load_problems
from sglang_longflow.monitor.client import activity
from sglang_longflow.reasoner import MODEL_DIR
from sglang_longflow.server.process import was_killed

pytestmark = pytest.mark.e2e
STEP_S = 20.0
BUDGET = 48


class Sleepy(harness.Server):
    """A server whose scheduler listens when `hold` is gone, and sleeps as long as it is told."""

    def __init__(self, folder: Path):
        self.file = folder / "sleep"
        self.hold = folder / "hold"
        self.hold.touch()
        arguments = [f"--model-path={MODEL_DIR}", f"--kv-budget={BUDGET}", "--sleep-on-idle"]
        arguments += ["--kv-budget-allow-full", "--max-total-tokens=2000"]
        program = (str(Path(harness.__file__).with_name("sleepy_server.py")),)
        variables = {"LONGFLOW_SLEEP_FILE": str(self.file), "LONGFLOW_HOLD_FILE": str(self.hold)}
        super().__init__(arguments, variables, program)

    def sleep_in_the_next_prefill(self, seconds: float) -> None:
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(str(seconds))
        temporary.replace(self.file)

    def told(self) -> dict:
        """As the server has it, old or not."""
        status, found = self.request("/longflow/stats?max_age_s=0", timeout_s=10)
        assert status == 200, found
        return found

    def told_before_the_first_answer(self) -> tuple[dict, int, str]:
        """What the stats, the plan (its status) and `activity` say while nothing has answered."""
        deadline = time.monotonic() + 400
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, self.tail()
            try:
                stats = self.told()
                break
            except OSError:  # nobody listens yet
                time.sleep(0.2)
        return stats, self.request("/longflow/plan?budget=96")[0], activity(self.url, timeout_s=8)


@pytest.fixture(scope="module")
def starting(tmp_path_factory):
    """A server, and what it said before its scheduler had answered anything.

    The server itself asks for its history every five seconds: only a scheduler that does not listen
    from the beginning has surely given no answer.
    """
    with Sleepy(tmp_path_factory.mktemp("sleepy")) as running:
        try:
            told = running.told_before_the_first_answer()
        finally:
            running.hold.unlink()
        yield running.wait_ready(), told


@pytest.fixture
def server(starting):
    return starting[0]


def test_before_the_first_answer(starting):
    server, (found, plan_status, said) = starting
    assert (found["state"], found["age_s"], found["pool"]) == ("busy", None, None)
    assert found["server"]["model"] == str(MODEL_DIR) and found["requests"] == []
    assert plan_status == 503 and said == "busy: no answer yet"
    found = server.stats()
    assert found["state"] == "ok" and found["age_s"] < 2 and found["pool"]["total_tokens"] == 2000


def test_the_demo_goes_on_and_everyone_is_told(server):
    """The demo's own loop, `longflow top` and the stats, while one step takes 20 seconds."""
    uptime = server.stats()["uptime_s"]
    shown, found, tops = [], [], []
    busy = threading.Event()

    def watch() -> None:
        while server.file.exists():
            time.sleep(0.05)
        end = time.monotonic() + STEP_S - 6
        while time.monotonic() < end:
            begin = time.monotonic()
            found.append(server.told())
            assert time.monotonic() - begin < 6
        busy.set()

    def look() -> None:
        command = [sys.executable, "-W", "ignore", "-m", "sglang_longflow.cli", "top", "--once"]
        tops.append(subprocess.run([*command, "--url", server.url], capture_output=True, text=True))

    server.sleep_in_the_next_prefill(STEP_S)
    watchers = [threading.Thread(target=watch)]
    watchers[0].start()
    timer = threading.Timer(6, look)
    timer.start()
    questions, _ = load_problems(2)

    def show(phase, running: int, note: str) -> None:
        shown.append(note)

    phase = run_phase(server.url, questions, BUDGET, {"max_new_tokens": 60}, show)
    timer.join(60)
    watchers[0].join(60)
    assert busy.is_set(), "a question was not answered, or too late"
    assert [answer.generated_tokens for answer in phase.answers] == [60, 60]
    assert phase.wall_s > STEP_S and phase.peak_running == 2 and phase.pool_tokens == 2000
    assert any(re.fullmatch(r"busy: last answer \d+ s ago", note) for note in shown), shown
    assert len(found) >= 3 and all(one["state"] == "busy" for one in found)
    ages = [one["age_s"] for one in found]
    assert ages == sorted(ages) and ages[-1] > STEP_S / 2
    assert all(one["pool"]["total_tokens"] == 2000 for one in found)
    (top,) = tops
    assert top.returncode == 0 and top.stdout.startswith("busy: last answer "), top
    later = server.stats()
    assert later["state"] == "ok" and later["uptime_s"] > uptime + STEP_S


def test_a_killed_scheduler_ends_the_watching_and_is_explained(server):
    """The last test of this server."""
    (scheduler,) = (
        process
        for process in psutil.Process(server.process.pid).children(recursive=True)
        if process.name().startswith("sglang::schedul")
    )
    os.kill(scheduler.pid, signal.SIGKILL)
    said = []
    with contextlib.suppress(OSError):  # the server has ended
        while True:
            status, found = server.request("/longflow/stats?max_age_s=0", timeout_s=10)
            said.append((status, found["message"] if status == 503 else found["state"]))
    assert all("has ended with status -9" in text for status, text in said if status == 503), said
    assert not [one for one in said if one[0] not in (200, 503)], json.dumps(said)
    status = server.process.wait(60)
    assert was_killed(status, server.log.read_text().splitlines()), server.tail()
