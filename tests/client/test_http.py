# SPDX-License-Identifier: Apache-2.0
"""The one HTTP client: what it sends, what it must not do, and how streams are read."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sglang_longflow.client.http import NoResponse, ask, event_of, lines, opened, problem_of


class Handler(BaseHTTPRequestHandler):
    """Answers with what it was asked; a few paths misbehave."""

    def do_GET(self):
        self.answer(None)

    def do_POST(self):
        self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, body):
        self.server.paths.append(self.path)
        if self.path == "/hang-up":
            return
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path == "/silent":
            self.server.over.wait(300)
            return
        self.send_response(418 if self.path == "/no" else 200)
        if self.path == "/broken-off":
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"data: {")
            return
        if self.path == "/events":
            self.end_headers()
            for part in self.server.parts:
                self.wfile.write(part)
                self.wfile.flush()
            return
        told = json.dumps({"body": body, "headers": dict(self.headers)}).encode()
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.paths, running.parts, running.over = [], [], threading.Event()
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.over.set()
        running.shutdown()
        thread.join()


def test_a_get_and_a_post(server):
    assert ask(server.url).json()["body"] is None
    found = ask(server.url, {"a": [1]}, api_key="key").json()
    assert found["body"] == {"a": [1]}
    assert found["headers"]["Authorization"] == "Bearer key"
    assert found["headers"]["Content-Type"] == "application/json"
    assert ask(f"{server.url}/x?a=1&b=%20").status_code == 200
    assert server.paths[-1] == "/x?a=1&b=%20"


def test_a_status_is_no_exception(server):
    assert ask(f"{server.url}/no").status_code == 418


def test_no_redirect_is_followed(server):
    assert ask(f"{server.url}/redirect", api_key="key").status_code == 302
    assert server.paths == ["/redirect"]


def test_a_proxy_of_the_environment_gets_nothing_of_this_machine(server, monkeypatch):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert ask(server.url).status_code == 200
    with pytest.raises(NoResponse, match="refused"):
        ask(server.url, is_local=False)


@pytest.mark.parametrize("path", ["/hang-up", "/broken-off", "/silent"])
def test_what_is_no_answer(server, path):
    with pytest.raises(NoResponse, match=r"disconnected|closed|timed out"):
        ask(server.url + path, timeout_s=0.3)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no.such.host.invalid", "no address"])
def test_where_nobody_is(url):
    with pytest.raises(NoResponse) as found:
        ask(url, timeout_s=300)
    assert str(found.value)


@pytest.fixture
def https(server, tmp_path):
    """The server with a certificate that no authority has signed."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=another.host", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server.url.replace("http:", "https:")


def test_a_certificate_is_checked_unless_told_not_to(https):
    with pytest.raises(NoResponse, match="CERTIFICATE_VERIFY_FAILED"):
        ask(https, timeout_s=300)
    assert ask(https, timeout_s=300, verify=False).status_code == 200


def test_a_stream_that_breaks_off_while_it_is_read(server):
    with pytest.raises(NoResponse), opened(f"{server.url}/broken-off") as response:
        list(lines(response))


def test_lines_end_at_newlines_alone(server):
    text = "data: " + json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False)
    raw = f"{text}\n\n: comment\ndata: [DONE]\n\n{text}".encode()
    for size in (1, 7, len(raw)):
        server.parts = [raw[i : i + size] for i in range(0, len(raw), size)]
        with opened(f"{server.url}/events") as response:
            found = [event for line in lines(response) if (event := event_of(line))]
        assert found == [{"text": "a\u2028b\x85c"}] * 2


def test_events():
    assert event_of(b'data: {"a": 1}\r') == {"a": 1}
    assert event_of(b"data: [DONE]") is None and event_of(b"") is None
    with pytest.raises(ValueError):
        event_of(b"data: {broken")
    assert problem_of({"text": "a"}) == ""
    assert problem_of({"error": {"message": "no", "code": 400}}) == "no"
    assert problem_of({"error": {"code": 400}}) == "{'code': 400}"
    assert problem_of({"error": "no"}) == "no"
