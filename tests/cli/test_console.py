# SPDX-License-Identifier: Apache-2.0
"""`longflow console` says at once what its page would show of a server that is not there."""

from __future__ import annotations

import http.server
import threading

import pytest

from sglang_longflow.cli import console
from sglang_longflow.cli.main import main
from sglang_longflow.monitor.relay import Relay


@pytest.fixture
def answering():
    """A server that answers each GET with a status and a body that a test may set."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(running.status)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *args):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.status = 200
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, ""),  # the page asks for the key
        (503, "does not answer yet"),
        (404, "started with --kv-budget?"),
        (200, "has no pool"),
    ],
)
def test_what_is_said_of_a_server(answering, monkeypatch, status, text):
    monkeypatch.setattr(console, "LOOK_TIMEOUT_S", 300.0)
    answering.status = status
    problem = console.problem_with(f"http://127.0.0.1:{answering.server_port}")
    assert text in problem and bool(problem) == bool(text)


def test_a_server_that_is_not_there_is_told_and_the_page_is_served(monkeypatch, capsys):
    served = []
    monkeypatch.setattr(Relay, "serve_forever", lambda self: served.append(self.url))
    assert main(["console", "--url", "http://127.0.0.1:9", "--port", "0"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("console of http://127.0.0.1:9: http://127.0.0.1:")
    (line,) = captured.err.splitlines()
    assert line.startswith("note: it does not answer yet; the page goes on asking (url=http")
    assert served == ["http://127.0.0.1:9"]
