# SPDX-License-Identifier: Apache-2.0
"""``longflow console``: the page here, the data there, the key handed on, nothing else."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sglang_longflow.cli.main import main
from sglang_longflow.monitor import hand_on
from sglang_longflow.monitor.relay import Relay
from waiting import until


class Upstream(BaseHTTPRequestHandler):
    """A server with a key that says what it was asked."""

    def do_GET(self):
        allowed = self.headers.get("Authorization") == "Bearer right"
        body = json.dumps({"path": self.path} if allowed else {"error": "Unauthorized"}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        """An answer in parts, as the prompt says: "die" breaks it off, "wait" never begins it."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body, self.headers.get("Authorization")))
        if body["prompt"] == "wait":
            self.connection.settimeout(300)
            self.server.left.append(self.connection.recv(1))  # b"" once the relay hangs up
            return
        if body["prompt"] == "refuse":
            self.send_response(400)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "17")
            self.end_headers()
            self.wfile.write(b'{"message":"no."}')
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(2):
            self.wfile.write(b"d\r\ndata: {}%5d\r\n" % number)
            if number == 0:
                self.server.go_on.wait(300)
        if body["prompt"] == "endless":
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            self.server.left.append(b"")
        if body["prompt"] in ("die", "endless"):
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *args):
        pass


class UpstreamServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Upstream)
        self.asked: list = []
        self.left: list = []
        self.go_on = threading.Event()

    def handle_error(self, request, client_address):
        pass  # the relay hung up, as a test wants it


@contextlib.contextmanager
def running(server):
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with server:
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
    thread.join()


@pytest.fixture(scope="module")
def upstream():
    server = UpstreamServer()
    with running(server):
        yield server


@pytest.fixture(scope="module")
def relay(upstream):
    with running(Relay(f"http://127.0.0.1:{upstream.server_port}", 0)) as url:
        yield url


def get(url, key=None, host=None):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    headers |= {"Host": host} if host else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as response:
            return response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def test_the_page_is_open_and_guarded(relay):
    for path in ("/longflow", "/", "/longflow/static/console.js"):
        status, body, headers = get(relay + path)
        assert status == 200 and body
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_data_needs_the_key(relay):
    assert get(f"{relay}/longflow/stats")[0] == 401
    assert get(f"{relay}/longflow/stats", "wrong")[0] == 401
    assert get(f"{relay}/longflow/history?span_s=60", "right")[0] == 200
    status, body, headers = get(f"{relay}/longflow/plan?budget=96&users=2", "right")
    assert status == 200 and json.loads(body) == {"path": "/longflow/plan?budget=96&users=2"}
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    [
        "/generate",
        "/v1/completions",
        "/longflow/other",
        "/longflow/static/../page.py",
        "/longflow/stats/x",
    ],
)
def test_nothing_else_is_handed_on(relay, path):
    assert get(relay + path, "right")[0] == 404


@pytest.mark.parametrize("name", ["docs", "metrics"])
def test_links_of_the_page_lead_to_the_server(relay, name):
    """Not through the relay: a browser goes there itself, without the key."""
    connection = http.client.HTTPConnection(relay.removeprefix("http://"))
    connection.request("GET", f"/{name}")
    answer = connection.getresponse()
    location = answer.getheader("Location")
    assert answer.status == 302 and location.endswith(f"/{name}") and relay not in location
    assert get(location, "right")[:2] == (200, json.dumps({"path": f"/{name}"}).encode())
    connection.close()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:30080", "["])
def test_another_host_name_is_refused(relay, host):
    assert get(f"{relay}/longflow/stats", "right", host)[0] == 421
    assert get(f"{relay}/longflow/stats", "right", "localhost:9")[0] == 200


def test_a_server_that_is_gone_is_a_502():
    with running(Relay("http://127.0.0.1:9", 0)) as url:
        status, body, _ = get(f"{url}/longflow/stats")
        assert status == 502 and "http://127.0.0.1:9 does not answer" in json.loads(body)["message"]


def post(relay, body, path="/v1/completions", **headers):
    """The connection, which may stream, and the head of its answer; headers by `_` for `-`."""
    connection = http.client.HTTPConnection(relay.removeprefix("http://"), timeout=300)
    sent = {"Content-Type": "application/json", "Origin": relay, "Sec-Fetch-Site": "same-origin"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    connection.request(
        "POST", path, data, {name: value for name, value in sent.items() if value is not None}
    )
    return connection, connection.getresponse()


def test_a_prompt_streams_through_with_its_key(relay, upstream):
    upstream.go_on.clear()
    body = {"prompt": "hello"}
    connection, answer = post(relay, body, Authorization="Bearer right")
    assert answer.status == 200 and answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["Content-Security-Policy"] and answer.headers["Cache-Control"]
    assert answer.read1() == b"data: {}    0"  # before the server has said the rest
    upstream.go_on.set()
    assert answer.read() == b"data: {}    1"
    assert upstream.asked[-1] == ("/v1/completions", body, "Bearer right")
    connection.close()


def test_a_refusal_of_the_server_is_handed_back(relay):
    connection, answer = post(relay, {"prompt": "refuse"})
    assert (answer.status, answer.read()) == (400, b'{"message":"no."}')
    connection.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"}, 403),
        ({"Origin": "https://evil.example", "Sec_Fetch_Site": None}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:9"}, 403),  # another server of this machine
        ({"Origin": None, "Sec_Fetch_Site": "same-site"}, 403),
        ({"Content_Type": "text/plain"}, 415),  # what a form of another site can send unasked
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Host": "evil.example"}, 421),
        ({"Content_Length": "999999999999"}, 413),
        ({"Content_Length": "9" * 5000}, 413),
        ({"Content_Length": "-1"}, 411),
        ({"Content_Length": "1e3"}, 411),
    ],
)
def test_what_another_page_could_send_is_not_handed_on(relay, upstream, headers, status):
    before = len(upstream.asked)
    connection, answer = post(relay, {"prompt": "hello"}, **headers)
    assert answer.status == status and json.loads(answer.read())["message"]
    assert len(upstream.asked) == before
    connection.close()


def test_a_program_on_this_machine_may_ask_too(relay, upstream):
    upstream.go_on.set()
    connection, answer = post(relay, {"prompt": "hello"}, Origin=None, Sec_Fetch_Site=None)
    assert answer.status == 200 and answer.read()
    connection.close()


@pytest.mark.parametrize("path", ["/generate", "/v1/completions?x=1", "/flush_cache", "/longflow"])
def test_no_other_route_takes_a_prompt(relay, path):
    connection, answer = post(relay, {"prompt": "hello"}, path)
    assert answer.status == 404 and "/v1/chat/completions" in json.loads(answer.read())["message"]
    connection.close()


def test_a_body_over_the_limit_is_refused_in_words(relay, upstream, monkeypatch):
    """The sender gets to read it although it is still sending."""
    monkeypatch.setattr("sglang_longflow.monitor.relay.DRAIN_S", 300.0)
    before = len(upstream.asked)
    connection, answer = post(relay, b"x" * (hand_on.MAX_BODY_BYTES + 1))
    assert answer.status == 413 and "4,194,304 bytes" in json.loads(answer.read())["message"]
    assert len(upstream.asked) == before
    connection.close()


def test_a_body_that_trickles_is_given_up(relay, monkeypatch):
    monkeypatch.setattr(hand_on, "BODY_TIMEOUT_S", 0.3)
    monkeypatch.setattr("sglang_longflow.monitor.relay.DRAIN_S", 300.0)
    host, port = relay.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=300) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 500\r\n"
        client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode())
        for _ in range(10):
            client.sendall(b" ")
            time.sleep(0.05)
        assert client.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_server_that_dies_in_its_answer_is_told(relay, upstream):
    upstream.go_on.set()
    connection, answer = post(relay, {"prompt": "die"})
    with pytest.raises(http.client.IncompleteRead) as caught:
        answer.read()
    event = caught.value.partial.splitlines()[-2 if b"\n\n" in caught.value.partial else -1]
    assert "broke off its answer" in event.decode()
    connection.close()


def test_the_server_is_let_go_when_the_page_leaves(relay, upstream):
    """Also while it has not answered at all: a request may wait in its queue."""
    upstream.left.clear()
    host, port = relay.removeprefix("http://").split(":")
    before = len(upstream.asked)
    client = socket.create_connection((host, int(port)), timeout=300)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 18\r\n"
    client.sendall(f'{head}Content-Type: application/json\r\n\r\n{{"prompt": "wait"}}'.encode())
    until(lambda: len(upstream.asked) > before)
    assert upstream.left == []
    client.close()
    until(lambda: upstream.left == [b""])


def test_a_page_that_reads_nothing_is_let_go(relay, upstream, monkeypatch):
    """Not kept for ever with an answer that fills every buffer."""
    monkeypatch.setattr("sglang_longflow.monitor.relay._Handler.timeout", 2.0)
    upstream.go_on.set()
    upstream.left.clear()
    connection, answer = post(relay, {"prompt": "endless"})
    assert answer.status == 200
    until(lambda: upstream.left == [b""])
    connection.close()


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--port", "70000"], "port='70000'"),
        (["--port", "x"], "port='x'"),
        (["--url", "ftp://x"], "url='ftp://x'"),
        (["--url", "http://x:99999"], "url='http://x:99999'"),
    ],
)
def test_usage_errors(capsys, argv, text):
    assert main(["console", *argv]) == 2
    assert text in capsys.readouterr().err


def test_a_taken_port_is_named(capsys, relay):
    port = relay.rsplit(":", 1)[1]
    assert main(["console", "--port", port]) == 2
    assert f"port={port}: Address already in use" in capsys.readouterr().err


def raw(relay, head: str, body: bytes = b"") -> list[bytes]:
    """Status lines of all that is answered to what is sent on one connection."""
    port = int(relay.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=300) as connection:
        connection.sendall(head.replace("PORT", str(port)).encode("latin-1") + body)
        connection.shutdown(socket.SHUT_WR)
        found = b""
        while part := connection.recv(65536):
            found += part
    return [line for line in found.split(b"\r\n") if b"HTTP/1.1 " in line]


SMUGGLED = b"GET /longflow HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nContent-Type: application/json\r\n"


def test_a_body_is_never_the_next_request(relay):
    get = f"GET /longflow HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(SMUGGLED)}\r\n\r\n"
    assert len(raw(relay, get, SMUGGLED)) == 1
    twice = f"{POST}Content-Length: 2\r\nContent-Length: {2 + len(SMUGGLED)}\r\n\r\n"
    (status,) = raw(relay, twice, b"{}" + SMUGGLED)
    assert b" 400 " in status


@pytest.mark.parametrize(
    "header",
    [
        "Origin: http://127.0.0.1:PORT\r\nOrigin: http://evil",
        "Content-Type: text/plain",
        "Authorization: Bearer a\r\nAuthorization: Bearer b",
        "Host: evil",
    ],
)
def test_a_header_that_decides_comes_once(relay, upstream, header):
    before = len(upstream.asked)
    (status,) = raw(relay, f"{POST}{header}\r\nContent-Length: 2\r\n\r\n", b"{}")
    assert status.split()[1] in (b"400", b"421")
    assert len(upstream.asked) == before


def test_a_host_with_a_user_is_refused(relay):
    (status,) = raw(relay, "GET /longflow/stats HTTP/1.1\r\nHost: evil@localhost\r\n\r\n")
    assert b" 421 " in status


def test_a_key_that_no_header_can_hold_is_told(relay):
    """A page can send one: its field takes any letter."""
    (status,) = raw(
        relay,
        "GET /longflow/stats HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xe9\r\n\r\n",
    )
    assert b" 502 " in status
