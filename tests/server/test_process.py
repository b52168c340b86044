# SPDX-License-Identifier: Apache-2.0
"""Why a server ended: signal 9 from outside is told apart from SGLang's own."""

from __future__ import annotations

import os
import sys

import pytest

from sglang_longflow.server import process
from sglang_longflow.server.process import Server, ServerEnded, out_of_memory, was_killed
from waiting import until

PYTHON = sys.executable
CRASHED = (
    "[2026-11-29 10:00:00] Subprocess scheduler_0 (pid=29430) crashed with exit code {}. "
    "Triggering SIGQUIT for cleanup..."
)
QUIT = "[2026-11-29 10:00:01] SIGQUIT received. signum=None, frame=None. It usually means one child"
NO_DUMP = "No live scheduler processes found; skipping py-spy and CUDA coredump."


@pytest.mark.parametrize(
    ("status", "lines", "killed"),
    [
        (-9, [CRASHED.format(-9), QUIT, NO_DUMP], True),
        (-9, ['{"message": "%s"}' % CRASHED.format(-9), QUIT], True),  # noqa: UP031
        (-9, [CRASHED.format(-6), QUIT, NO_DUMP], False),
        (-9, ["ValueError: a fault in a scheduler", QUIT], False),
        (-9, ["INFO: ready"], True),  # the main process itself
        (-9, ["SIGTERM received. Draining requests and shutting down..."], False),
        (
            1,
            ["RuntimeError: Rank 0 scheduler died during initialization (exit code: -9). If"],
            True,
        ),
        (1, ["ValueError: no"], False),
        (-15, [], False),
    ],
)
def test_who_killed(status, lines, killed):
    assert was_killed(status, lines) is killed


@pytest.mark.parametrize(
    ("arguments", "tokens"),
    [
        (["--max-total-tokens=2400", "--x"], "1200"),
        (["--max-total-tokens", "2400"], "1200"),
        (["--max-total-tokens"], "N"),
        (["--max-total-tokens-more=7"], "N"),
        ([], "N"),
    ],
)
def test_what_helps_has_a_number_where_the_pool_is_known(arguments, tokens):
    assert out_of_memory(arguments) == (
        f"killed by the kernel (signal 9), probably out of memory; --max-total-tokens {tokens} "
        f"makes the pool smaller"
    )


@pytest.fixture
def server(monkeypatch, tmp_path):
    """``server(CODE)`` runs Python in place of SGLang."""
    started = []

    def start(code: str) -> Server:
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\nexec {PYTHON} -c '{code}'\n")
        program.chmod(0o755)
        monkeypatch.setattr(process.sys, "executable", str(program))
        started.append(Server(["--max-total-tokens=80"], "http://127.0.0.1:9"))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def test_a_killed_server_is_explained(server):
    running = server("import os; print(1, flush=True); os.kill(os.getpid(), 9)")
    with pytest.raises(ServerEnded) as ended:
        running.wait_ready(300)
    assert str(ended.value) == (
        f"the server ended during start-up (signal 9): {out_of_memory(['--max-total-tokens=80'])}"
    )


def test_another_end_quotes_the_log(server):
    running = server('raise SystemExit("ValueError: the reason")')
    with pytest.raises(ServerEnded, match=r"\(exit status 1\): ValueError: the reason"):
        running.wait_ready(300)


def test_the_stage_of_a_start(server):
    title = "from setproctitle import setproctitle; "
    code = title + 'setproctitle("sglang::scheduler"); print(1, flush=True); input()'
    running = server("import time; time.sleep(3600)")
    assert running.stage() == "importing SGLang" and running.alive
    assert os.getpgid(running.process.pid) == running.process.pid
    running = server(code.replace("input()", "import time; time.sleep(3600)"))
    until(lambda: running.recent or not running.alive)
    assert running.alive
    assert running.stage() == "loading the model"
    running._listens = True  # /health has answered 503
    assert running.stage() == "warming up"
