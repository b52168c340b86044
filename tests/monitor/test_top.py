# SPDX-License-Identifier: Apache-2.0
"""``longflow top`` on recorded stats from a small HTTP server."""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sglang_longflow.cli import top
from sglang_longflow.cli.main import main
from sglang_longflow.errors import NoAnswer
from sglang_longflow.monitor import client, terminal

STATS = {
    "server": {"model": "tiny", "longflow": "0.1.0", "schedulers": 1},
    "settings": {"kv_budget": 96},
    "pool": {
        "total_tokens": 3000,
        "available_tokens": 2200,
        "evictable_tokens": 100,
        "budgeted_tokens": 192,
    },
    "tree_held_tokens": 30,
    "sums": {
        "running_requests": 3,
        "at_budget_requests": 2,
        "full_kv_requests": 1,
        "saved_tokens": 708,
    },
    "requests": [
        dict(rid="first", seq_len=500, kv_len=96, kv_budget=96, kv_policy="longflow",
             own_tokens=96, tree_tokens=0),
        dict(rid="e\x1b[2Jvil[bold]", seq_len=400, kv_len=96, kv_budget=96, kv_policy="tova",
             own_tokens=96, tree_tokens=0),
        dict(rid="whole", seq_len=410, kv_len=410, kv_budget=0, kv_policy="longflow",
             own_tokens=380, tree_tokens=30),
    ],
    "prefilling": [dict(rid="new", prompt_tokens=64, own_tokens=64)],
    "counters": {"decoded_tokens": 1000, "overwritten_tokens": 708, "cut_tokens": 0},
    "queued_requests": 4,
    "queue": [],
    "uptime_s": 100.0,
}  # fmt: skip


class Recorded(ThreadingHTTPServer):
    """Gives STATS; every look is two seconds and 50 decoded tokens later."""

    daemon_threads = True

    def __init__(self):
        self.looks = 0
        self.key = ""
        self.answer: tuple[int, str] | None = None
        self.failures: int | None = None  # so many times `answer`, then the stats again
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        stats = copy.deepcopy(STATS)
        stats["uptime_s"] += 2 * self.server.looks
        stats["counters"]["decoded_tokens"] += 50 * self.server.looks
        self.server.looks += 1
        status, body = 200, json.dumps(stats)
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            status, body = 401, '{"error":"Unauthorized"}'
        if self.server.answer and self.server.failures != 0:
            status, body = self.server.answer
            if self.server.failures is not None:
                self.server.failures -= 1
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Recorded() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def test_owners_sum_to_the_pool():
    found = terminal.owners(STATS)
    assert found == {
        "budgeted": 192,
        "full": 380,
        "prefill": 64,
        "held": 30,
        "evictable": 100,
        "free": 2200,
        "other": 34,
    }
    assert sum(found.values()) == STATS["pool"]["total_tokens"]
    bar = terminal.pool_bar(STATS).plain
    assert len(bar) == terminal.BAR_CELLS and set(bar) == set("#Fpceo.")


def test_once(server, capsys):
    assert main(["top", "--url", server.url + "/", "--once"]) == 0
    text = capsys.readouterr().out
    assert "pool 700 of 3,000 (23%)" in text and "queued 4" in text and "####" in text
    rows = [line.split() for line in text.splitlines()]
    assert [row for row in rows if row and row[0] in ("first", "whole")] == [
        ["first", "500", "96", "96", "81%", "longflow"],
        ["whole", "410", "410", "full", "KV", "-", "-"],
    ]
    assert "\x1b" not in text and "e?[2Jvil[bold]" in text
    assert server.looks == 1


@contextlib.contextmanager
def watching(command: list[str], **how):
    """`longflow top` that Ctrl+C ends, also in a run in the background, where it is ignored."""
    process = subprocess.Popen(
        [*command, "--interval", "0.2"],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **how,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_lines_where_there_is_no_terminal(server):
    command = [sys.executable, "-m", "sglang_longflow.cli", "top", "--url", server.url]
    with watching(command, stdout=subprocess.PIPE, text=True) as running:
        lines = [running.stdout.readline() for _ in range(3)]
        running.send_signal(signal.SIGINT)
        assert running.wait(300) == 0
    assert "- tokens/s" in lines[0]
    assert all("25 tokens/s, 0 overwritten/s" in line for line in lines[1:])


def test_json(server, capsys):
    assert main(["top", "--url", server.url, "--once", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {**STATS, "rates": None}


def read_until(screen: int, text: str) -> str:
    """What a terminal was sent, up to `text`."""
    seen, deadline = "", time.monotonic() + 300
    while text not in seen:
        assert time.monotonic() < deadline, seen
        seen += re.sub(r"\x1b\[[\d;]*m", "", os.read(screen, 65536).decode(errors="replace"))
    return seen


def test_a_screen_that_outlives_the_server(server):
    """On a terminal: the view, then what was last known, and since when there is no answer."""
    screen, end = pty.openpty()
    command = [sys.executable, "-m", "sglang_longflow.cli", "top", "--url", server.url]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    with watching(command, stdin=end, stdout=end, stderr=end, env=environment) as running:
        os.close(end)
        text = read_until(screen, "25 tokens/s")
        assert "longflow top" in text and "whole" in text and "\x1b[2Jvil" not in text
        server.answer = (503, '{"message": "the scheduler has not answered"}')
        text = read_until(screen, "no answer since")
        read_until(screen, "first")  # the last rows stay
        os.write(screen, b"s")
        assert read_until(screen, "sorted by saved")
        os.write(screen, b"\x1b[A")  # an arrow is none of its keys
        server.answer = None
        running.send_signal(signal.SIGINT)
        assert running.wait(300) == 0
    os.close(screen)


def test_a_key_ends_it_and_the_terminal_is_as_before(server):
    screen, end = pty.openpty()
    before = termios.tcgetattr(end)
    command = [sys.executable, "-m", "sglang_longflow.cli", "top", "--url", server.url]
    command += ["--sort", "id"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    with watching(command, stdin=end, stdout=end, stderr=end, env=environment) as running:
        read_until(screen, "sorted by id")
        assert termios.tcgetattr(end) != before
        os.write(screen, b"q")
        assert running.wait(300) == 0
    assert termios.tcgetattr(end) == before
    os.close(end)
    os.close(screen)


@pytest.mark.parametrize("sort", ["speed", "savd"])
def test_an_unknown_order(capsys, sort):
    assert main(["top", "--sort", sort]) == 2
    line = capsys.readouterr().err
    assert f"sort={sort!r}: expected one of arrival, saved" in line
    assert ("did you mean saved?" in line) == (sort == "savd")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((404, "{}"), ["404", "--kv-budget"]),
        ((503, '{"message": "the scheduler\\n has not answered"}'), ["503", "has not answered"]),
        ((500, "<html>"), ["500"]),
        ((302, ""), ["302"]),
        ((200, "<html>"), ["no JSON"]),
        ((200, "{}"), ["has no pool"]),
    ],
)
def test_answers_that_are_no_stats(server, capsys, answer, words):
    server.answer = answer
    assert main(["top", "--url", server.url, "--once"]) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == "" and line.startswith("longflow top: error: url=")
    assert all(word in line for word in words), line


LOOK = terminal.Look(120, 40)
BUSY = {"state": "busy", "age_s": 7.2}
UNKNOWN = {
    **dict.fromkeys(("settings", "pool", "counters", "sums", "queued_requests", "uptime_s")),
    **{name: [] for name in ("requests", "prefilling", "queue")},
    "server": {"model": "tiny", "longflow": "0.1.0", "schedulers": None},
    **{"state": "busy", "age_s": None, "tree_held_tokens": None},
}


def test_a_busy_server_is_said_to_be(server, capsys):
    server.answer = (200, json.dumps(STATS | BUSY))
    assert main(["top", "--url", server.url, "--once"]) == 0
    assert "busy: last answer 7 s ago | pool 700 of 3,000" in capsys.readouterr().out
    server.answer = (200, json.dumps(UNKNOWN))
    assert main(["top", "--url", server.url, "--once"]) == 0
    assert capsys.readouterr().out == "busy: no answer yet\n"
    assert main(["top", "--url", server.url, "--once", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {**UNKNOWN, "rates": None}


@pytest.mark.parametrize(
    ("stats", "problem", "is_gone", "words"),
    [
        (STATS | BUSY, "", False, "busy: last answer 7 s ago"),
        (UNKNOWN, "", False, "busy: no answer yet"),
        (STATS, "since 12:00:00: x", False, "no answer since"),
        (STATS, "since 12:00:00: x", True, "no answer since"),
    ],
)
def test_the_screen_is_red_only_where_the_server_is_gone(stats, problem, is_gone, words):
    shown = terminal.view(stats, None, "http://x", problem, is_gone, LOOK)
    head = shown if stats is UNKNOWN else shown.renderables[0]
    (style,) = (span.style for span in head.spans if words in head.plain[span.start : span.end])
    assert style == ("bold red" if is_gone else "bold yellow")
    assert stats is UNKNOWN or len(shown.renderables) > 3  # the last rows stay


def test_an_idle_screen_says_so():
    shown = terminal.view(STATS | {"requests": []}, None, "http://x", "", False, LOOK)
    assert "no request is running" in [str(part) for part in shown.renderables]


def test_lines_go_on_while_the_server_does_not_answer(server, monkeypatch, capsys):
    """Until it has been silent for so long that it must be gone."""
    server.answer = (503, '{"message": "its process has ended"}')
    server.failures = 2
    args = argparse.Namespace(api_key=None)
    monkeypatch.setattr(top, "GONE_AFTER_S", 300.0)
    assert top._next(args, server.url, 0.2)["uptime_s"] >= 100
    assert capsys.readouterr().err.count("no answer: url=") == 2
    server.failures = None
    monkeypatch.setattr(top, "GONE_AFTER_S", 0.5)
    with pytest.raises(NoAnswer, match="has ended"):
        top._next(args, server.url, 0.2)


def test_what_a_server_does_in_a_few_words(server):
    doing = "3 running, 4 waiting, 1,0"

    def activity(url: str) -> str:
        return client.activity(url, timeout_s=300)  # it answers, however busy this machine is

    assert activity(server.url).startswith(doing)
    server.answer = (200, json.dumps(STATS | BUSY))
    assert activity(server.url).endswith("; busy: last answer 7 s ago")
    server.answer = (200, json.dumps(UNKNOWN))
    assert activity(server.url) == "busy: no answer yet"
    server.answer = (404, "{}")  # stock SGLang
    assert activity(server.url) == "at work"
    server.answer = (503, "{}")
    assert "too busy" in activity(server.url)
    assert "too busy" in activity("http://127.0.0.1:9")


def test_keys(server, capsys, monkeypatch):
    monkeypatch.delenv("LONGFLOW_API_KEY", raising=False)
    server.key = "right"
    assert main(["top", "--url", server.url, "--once"]) == 1
    assert "asks for a key; give --api-key (401)" in capsys.readouterr().err
    assert main(["top", "--url", server.url, "--once", "--api-key", "wrong"]) == 1
    assert "refuses this --api-key (401)" in capsys.readouterr().err
    assert main(["top", "--url", server.url, "--once", "--api-key", "right"]) == 0
    monkeypatch.setenv("LONGFLOW_API_KEY", " right\n")
    assert main(["top", "--url", server.url, "--once"]) == 0
    assert main(["top", "--url", server.url, "--once", "--api-key", "wrong"]) == 1


def test_no_server(capsys):
    assert main(["top", "--url", "http://127.0.0.1:9"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "url=http://127.0.0.1:9: the server does not answer" in line and "refused" in line


@pytest.mark.parametrize("value", ["0.1", "3601", "nan", "often", "-1"])
def test_intervals(capsys, value):
    assert main(["top", f"--interval={value}"]) == 2
    assert f"interval={value!r}: expected seconds from 0.2 to 3600" in capsys.readouterr().err


def test_rates_need_time_and_survive_a_restart():
    later = copy.deepcopy(STATS)
    later["uptime_s"] += 4
    later["counters"]["overwritten_tokens"] += 10
    found = {"decoded_tokens_per_s": 0.0, "overwritten_tokens_per_s": 2.5}
    assert top.rates(later, STATS) == found
    assert top.rates(STATS, STATS) is None and top.rates(STATS, None) is None
    assert top.rates(STATS, later) is None  # the server was started again
