# SPDX-License-Identifier: Apache-2.0
"""Whether a request's budget gets through the routers, seen by a worker that echoes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fleet import Router, call

pytestmark = pytest.mark.deploy
CUSTOM = {"kv_budget": 64, "kv_policy": "tova"}
BODIES = {
    "/generate": {"text": "x", "sampling_params": {"custom_params": CUSTOM}},
    "/v1/completions": {"model": "m", "prompt": "x", "custom_params": CUSTOM},
    "/v1/chat/completions": {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "custom_params": CUSTOM,
    },
}


class Echo(BaseHTTPRequestHandler):
    """As much of a worker as a router asks for; answers with the body that arrived."""

    protocol_version = "HTTP/1.1"
    known = {
        "/health": {},
        "/server_info": {"model_path": "m", "served_model_name": "m", "version": "0.5.23"},
        "/model_info": {"model_path": "m", "is_generation": True},
        "/v1/models": {"object": "list", "data": [{"id": "m", "object": "model"}]},
    }

    def log_message(self, *args):
        pass

    def _answer(self, value, status=200):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        path = self.path.split("?")[0]
        self._answer(self.known.get(path, {}), 200 if path in self.known else 404)

    def do_POST(self):
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))


@contextlib.contextmanager
def echo():
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("package", "passes"),
    [
        # It knows the fields of its own release and leaves out all others without a word.
        ("sglang-router", {"/v1/completions"}),
        ("smg", set(BODIES)),
    ],
)
def test_custom_params(tools, tmp_path, package, passes):
    router = Router(tmp_path, tools, package)

    async def start(worker):
        await router.start()
        await router.add(worker)

    with echo() as worker:
        try:
            asyncio.run(start(worker))
            got = {}
            for path, body in BODIES.items():
                status, answer = call("POST", router.url + path, body)
                assert status == 200, answer
                got[path] = answer.get("sampling_params", answer).get("custom_params")
        finally:
            router.kill()
    assert {path for path, value in got.items() if value == CUSTOM} == passes
    assert {path for path, value in got.items() if value is None} == set(BODIES) - passes
