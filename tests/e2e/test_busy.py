# SPDX-License-Identifier: Apache-2.0
"""Watching decides nothing: a scheduler that is busy in a long step, then one that is killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import harness
from sglang_longflow.demo.ask import run_phase
from sglang_longflow.demo.questions import load_problems
from sglang_longflow.monitor.client import activity
from sglang_longflow.monitor.snapshots import DEFAULT_MAX_AGE_S
from sglang_longflow.reasoner import MODEL_DIR
from sglang_longflow.server.process import was_killed
from waiting import until

pytestmark = pytest.mark.e2e
BUDGET = 48
#: What is waited for in a long step. SGLang itself ends a scheduler after five minutes of one.
STEP_LIMIT_S = 200.0


class Sleepy(harness.Server):
    """A server whose scheduler listens, and steps, when it is told to (`sleepy_server`)."""

    def __init__(self, folder: Path):
        self.deaf, self.slow = folder / "deaf", folder / "slow"
        self.asked, self.held = folder / "long_step", folder / "in_long_step"
        self.deaf.touch()
        arguments = [f"--model-path={MODEL_DIR}", f"--kv-budget={BUDGET}", "--sleep-on-idle"]
        arguments += ["--kv-budget-allow-full", "--max-total-tokens=2000"]
        program = (str(Path(harness.__file__).with_name("sleepy_server.py")),)
        super().__init__(arguments, {"LONGFLOW_SLEEPY_FOLDER": str(folder)}, program)

    def told(self) -> dict:
        """As the server has it, old or not."""
        status, found = self.request("/longflow/stats?max_age_s=0", timeout_s=60)
        assert status == 200, found
        return found

    def told_before_the_first_answer(self) -> tuple[dict, int, str]:
        """What the stats, the plan (its status) and `activity` say while nothing has answered."""
        deadline = time.monotonic() + 900
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, self.tail()
            try:
                stats = self.told()
                break
            except OSError:  # nobody listens yet
                time.sleep(0.2)
        return stats, self.request("/longflow/plan?budget=96")[0], activity(self.url, timeout_s=60)


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
            running.deaf.unlink()
        yield running.wait_ready(), told


@pytest.fixture
def server(starting):
    return starting[0]


def test_before_the_first_answer(starting):
    server, (found, plan_status, said) = starting
    assert (found["state"], found["age_s"], found["pool"]) == ("busy", None, None)
    assert found["server"]["model"] == str(MODEL_DIR) and found["requests"] == []
    assert plan_status == 503 and said == "busy: no answer yet"
    began = time.monotonic()
    found = server.stats()
    assert found["state"] == "ok" and found["pool"]["total_tokens"] == 2000
    assert found["age_s"] <= time.monotonic() - began  # of this question


def test_the_demo_goes_on_and_everyone_is_told(server):
    """The demo's own loop, `longflow top` and the stats, while one step lasts until they are done.

    The steps after it are slow until the demo has seen both requests run.
    """
    uptime = server.stats()["uptime_s"]
    shown = []

    def is_told(note: str) -> bool:
        return bool(re.fullmatch(r"busy: last answer \d+ s ago", note))

    def watch() -> tuple[list[tuple[float, dict]], float, subprocess.CompletedProcess]:
        """[(seconds into the step when they were asked for, stats)], its length, `longflow top`."""
        found = []
        try:
            until(server.held.exists, STEP_LIMIT_S)
            since = time.monotonic()

            def age_s() -> float:
                found.append((time.monotonic() - since, server.told()))
                return found[-1][1]["age_s"]

            # `longflow top` shares an answer that is newer.
            until(lambda: age_s() > DEFAULT_MAX_AGE_S, STEP_LIMIT_S)
            top = pool.submit(longflow_top)
            until(lambda: age_s() and top.done() and any(map(is_told, shown)), STEP_LIMIT_S)
            return found, time.monotonic() - since, top.result()
        finally:
            server.held.unlink(missing_ok=True)

    def longflow_top() -> subprocess.CompletedProcess:
        command = [sys.executable, "-W", "ignore", "-m", "sglang_longflow.cli", "top", "--once"]
        return subprocess.run([*command, "--url", server.url], capture_output=True, text=True)

    def show(phase, running: int, note: str) -> None:
        shown.append(note)
        if running == 2:
            server.slow.unlink(missing_ok=True)

    server.slow.touch()
    server.asked.touch()
    questions, _ = load_problems(2)
    with ThreadPoolExecutor(2) as pool:
        watching = pool.submit(watch)
        phase = run_phase(server.url, questions, BUDGET, {"max_new_tokens": 60}, show)
        found, step_s, top = watching.result()
    assert [answer.generated_tokens for answer in phase.answers] == [60, 60]
    assert phase.wall_s > step_s and phase.peak_running == 2 and phase.pool_tokens == 2000
    assert any(map(is_told, shown)), shown
    assert len(found) >= 2 and all(one["state"] == "busy" for _, one in found)
    ages = [one["age_s"] for _, one in found]
    assert ages == sorted(ages) and all(one["age_s"] > asked_s - 0.01 for asked_s, one in found)
    assert all(one["pool"]["total_tokens"] == 2000 for _, one in found)
    assert top.returncode == 0 and top.stdout.startswith("busy: last answer "), top
    later = server.stats()
    assert later["state"] == "ok" and later["uptime_s"] > uptime + step_s


def test_a_killed_scheduler_ends_the_watching_and_is_explained(server):
    """The last test of this server."""
    (scheduler,) = (
        process
        for process in psutil.Process(server.process.pid).children(recursive=True)
        if process.name().startswith("sglang::schedul")
    )
    os.kill(scheduler.pid, signal.SIGKILL)
    said = []
    with contextlib.suppress(OSError, http.client.HTTPException):  # the server has ended
        while True:
            status, found = server.request("/longflow/stats?max_age_s=0", timeout_s=60)
            said.append((status, found["message"] if status == 503 else found["state"]))
    assert all("has ended with status -9" in text for status, text in said if status == 503), said
    assert not [one for one in said if one[0] not in (200, 503)], json.dumps(said)
    status = server.process.wait(300)
    assert was_killed(status, server.log.read_text().splitlines()), server.tail()
