# SPDX-License-Identifier: Apache-2.0
"""``longflow console``: the page here, the data there, the key handed on, nothing else."""

import contextlib
import http.client
import json
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sglang_longflow.cli.main import main
from sglang_longflow.monitor.relay import Relay


class Upstream(BaseHTTPRequestHandler):
    """A server with a key that says what it was asked."""

    def do_GET(self):
        allowed = self.headers.get("Authorization") == "Bearer right"
        body = json.dumps({"path": self.path} if allowed else {"error": "Unauthorized"}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def running(server):
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with server:
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
    thread.join()


@pytest.fixture(scope="module")
def relay():
    with running(ThreadingHTTPServer(("127.0.0.1", 0), Upstream)) as upstream:
        with running(Relay(upstream, 0)) as url:
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
    "path", ["/generate", "/longflow/other", "/longflow/static/../page.py", "/longflow/stats/x"]
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
