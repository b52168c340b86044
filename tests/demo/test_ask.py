# SPDX-License-Identifier: Apache-2.0
"""The demo's own loop against a small HTTP server: a look that fails is no sample."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sglang_longflow.demo import ask as demo
from sglang_longflow.demo.ask import run_phase
from sglang_longflow.demo.phase import DemoError, Question

STATS = {
    "state": "ok", "age_s": 0.1, "sums": {}, "counters": {}, "uptime_s": 5.0,
    "pool": {"total_tokens": 700, "available_tokens": 300, "evictable_tokens": 100},
    "requests": [{}, {}],
}  # fmt: skip
UNKNOWN = {
    **STATS, "state": "busy", "age_s": None, "sums": None, "counters": None, "uptime_s": None,
    "pool": None, "requests": [],
}  # fmt: skip


class Fake(ThreadingHTTPServer):
    """Answers looks with what is next of `looks`, and requests after all of them."""

    daemon_threads = True

    def __init__(self, looks: list):
        self.looks, self.asked, self.flushes, self.dies = looks, 0, [], False
        self.over, self.left = threading.Event(), threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.left.set()
        self.shutdown()
        super().__exit__(*exc)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def do_GET(self):
        server = self.server
        server.asked += 1
        look = server.looks.pop(0) if server.looks else STATS
        if not server.looks:
            server.over.set()
        if look == "hang up":
            self.close_connection = True
        elif look == "broken off":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"{")
            self.close_connection = True
        elif look == "silence":
            server.left.wait(300)
        elif isinstance(look, int):
            self.answer(look, '{"message": "x"}')
        else:
            self.answer(200, json.dumps(look))

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        if self.path.startswith("/flush_cache"):
            server.flushes.append(self.path)
            return self.answer(400, "requests are running")
        server.over.wait(300)
        if server.dies:
            return None
        event = {"text": "a", "meta_info": {"completion_tokens": 3}}
        self.answer(200, f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n")
        return None

    def log_message(self, *args):
        pass


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(demo, "POLL_INTERVAL_S", 0.01)
    monkeypatch.setattr(demo, "LOOK_TIMEOUT_S", 300.0)


def phase_of(server, shown: list):
    def show(phase, running: int, note: str) -> None:
        shown.append((running, note))
        # Of the next look: only one without an answer may be too late.
        demo.LOOK_TIMEOUT_S = 0.3 if server.looks[:1] == ["silence"] else 300.0

    return run_phase(server.url, [Question({"text": "q"})] * 2, 64, {}, show)


def test_a_look_that_fails_is_no_sample():
    shown: list = []
    busy = {**STATS, "state": "busy", "age_s": 7.4}
    looks = [503, "hang up", "silence", UNKNOWN, "broken off", busy, STATS, STATS]
    with Fake(looks) as server:
        phase = phase_of(server, shown)
    assert [answer.generated_tokens for answer in phase.answers] == [3, 3]
    assert (phase.peak_running, phase.peak_slots, phase.pool_tokens) == (2, 300, 700)
    notes = [note for _, note in shown[:7]]
    too_busy = "the server is too busy to say what it does"
    assert notes[:3] == [too_busy] * 3 and notes[4] == too_busy
    assert notes[3] == "busy: no answer yet" and notes[5] == "busy: last answer 7 s ago"
    assert notes[6] == "" and shown[-1] == (0, "")


def test_a_server_that_is_gone_ends_it():
    """Its connections tell, not the looks."""
    with Fake([STATS]) as server:
        server.dies = True
        with pytest.raises(DemoError, match=r"budget 64, request 1: .*(disconnected|closed|reset)"):
            phase_of(server, [])


def test_a_server_that_says_nothing_ends_it(monkeypatch):
    monkeypatch.setattr(demo, "SILENCE_S", 0.5)
    with Fake([503] * 1000) as server:
        begin = time.monotonic()
        with pytest.raises(DemoError, match=r"budget 64: the server has said nothing for 0 s"):
            phase_of(server, [])
        assert 0.5 < time.monotonic() - begin and server.looks  # not because they were over
        server.over.set()


def test_a_busy_server_that_answers_looks_is_waited_for(monkeypatch):
    monkeypatch.setattr(demo, "SILENCE_S", 0.1)
    with Fake([{**STATS, "state": "busy", "age_s": 200.0}] * 20) as server:
        assert phase_of(server, []).wall_s > 0.2


def test_a_cache_that_cannot_be_emptied_is_one_line():
    with Fake([]) as server:
        with pytest.raises(DemoError, match=r"flush_cache: HTTP 400: requests are running"):
            demo.flush_cache(server.url)
        assert server.flushes == ["/flush_cache?timeout=600"]
    with pytest.raises(DemoError, match="refused"):
        demo.flush_cache("http://127.0.0.1:9")
