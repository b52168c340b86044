# SPDX-License-Identifier: Apache-2.0
"""Budgets in frontend programs: the request bodies that reach a server, recorded by a fake one."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import sglang as sgl
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint

from sglang_longflow.client.frontend import BudgetedEndpoint, budgeted, gen, kv_budget

pytestmark = pytest.mark.sglang


class Recorder(BaseHTTPRequestHandler):
    """Answers like SGLang and keeps the sampling parameters of every generation."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._send(json.dumps({"model_path": "recorder"}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["sampling_params"]["max_new_tokens"]:
            self.server.bodies.append(body)
        answer = json.dumps({"text": " yes", "meta_info": {"prompt_tokens": 1}})
        self._send(f"data: {answer}\n\ndata: [DONE]\n\n" if body.get("stream") else answer)

    def _send(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        server.bodies = []
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def url(server):
    return f"http://127.0.0.1:{server.server_port}"


def sent(server) -> dict[str, dict | None]:
    """``custom_params`` of every generation by the end of its prompt."""
    return {
        body["text"].split("|")[-1]: body["sampling_params"].get("custom_params")
        for body in server.bodies
    }


@sgl.function
def levels(s):
    s += "|plain" + sgl.gen("a")
    s += "|own" + gen("b", kv_budget=256, kv_policy="streaming")
    with kv_budget(128):
        s += "|block" + gen("c")
        s += "|own in block" + gen("d", kv_budget=64)
        with kv_budget(None, policy="streaming"):
            s += "|inner block" + gen("e")
    s += "|after" + gen("f")
    s += budgeted("|wrapped" + sgl.gen("g"), 32)
    s += "|full" + gen("h", kv_budget=0)


EXPECTED = {
    "plain": None,
    "own": {"kv_budget": 256, "kv_policy": "streaming"},
    "block": {"kv_budget": 128},
    "own in block": {"kv_budget": 64},
    "inner block": {"kv_budget": 128, "kv_policy": "streaming"},
    "after": None,
    "wrapped": {"kv_budget": 32},
    "full": {"kv_budget": 0},
}


@pytest.mark.parametrize(("stream", "use_thread"), [(False, False), (False, True), (True, True)])
def test_each_generation_sends_its_own_budget(server, url, stream, use_thread):
    state = levels.run(backend=BudgetedEndpoint(url), stream=stream, use_thread=use_thread)
    if stream:  # the program runs in a thread of its own until its text ends
        assert "|full yes" in "".join(state.text_iter())
    assert state["h"] == " yes"
    assert sent(server) == EXPECTED
    assert all(body.get("stream", False) is stream for body in server.bodies)


def test_default_of_the_endpoint(server, url):
    backend = BudgetedEndpoint(url, kv_policy="streaming")
    levels.run(backend=backend.with_budget(512))["h"]
    got = sent(server)
    assert got["plain"] == {"kv_budget": 512, "kv_policy": "streaming"}
    assert got["own in block"] == {"kv_budget": 64, "kv_policy": "streaming"}
    server.bodies.clear()
    levels.run(backend=backend)["h"]  # with_budget left the first one alone
    assert sent(server)["plain"] == {"kv_policy": "streaming"}


@sgl.function
def forking(s):
    s += "start"
    forks = s.fork(4)
    for i, fork in enumerate(forks):
        with kv_budget(100 + i):
            fork += f"|fork {i}" + gen("x", max_tokens=7)
    forks.join()
    s += "|joined" + gen("y", kv_budget=99)


def test_fork_and_join(server, url):
    state = forking.run(backend=BudgetedEndpoint(url))
    assert state["x"] == [" yes"] * 4 and state["y"] == " yes"
    expected = {f"fork {i}": {"kv_budget": 100 + i} for i in range(4)}
    assert sent(server) == {**expected, "joined": {"kv_budget": 99}}
    assert server.bodies[0]["sampling_params"]["max_new_tokens"] == 7


@sgl.function
def one(s, name, tokens):
    s += "|" + name
    s += gen("x", kv_budget=tokens, stop=["."], temperature=0.5, dtype=int)


def test_run_batch_keeps_requests_apart(server, url):
    rows = [{"name": f"row {i}", "tokens": 64 + i} for i in range(24)]
    for state in one.run_batch(rows, backend=BudgetedEndpoint(url), num_threads=8):
        assert state["x"] == " yes"
    assert sent(server) == {row["name"]: {"kv_budget": row["tokens"]} for row in rows}


def test_other_sampling_parameters_survive(server, url):
    one.run(name="r", tokens=64, backend=BudgetedEndpoint(url), top_k=5)["x"]
    params = server.bodies[0]["sampling_params"]
    assert params["temperature"] == 0.5 and params["top_k"] == 5
    assert params["regex"] and "." in params["stop"]  # dtype=int became a pattern


def test_body_is_stock_without_a_budget(server, url):
    """Without a budget the endpoint sends what SGLang's own sends, byte for byte."""

    @sgl.function
    def stock(s):
        s += "hello" + sgl.gen("a", max_tokens=3, stop="x")

    stock.run(backend=RuntimeEndpoint(url))["a"]
    stock.run(backend=BudgetedEndpoint(url))["a"]
    assert server.bodies[0] == server.bodies[1]


@pytest.mark.filterwarnings("ignore:Error in stream_executor")
def test_stock_endpoint_refuses_instead_of_ignoring(server, url):
    state = one.run(name="r", tokens=64, backend=RuntimeEndpoint(url))
    assert "Invalid dtype" in str(state.error()) and not server.bodies


@pytest.mark.parametrize("tokens", ["256", True, 1.5, -1])
def test_wrong_budgets_are_named(url, tokens):
    with pytest.raises(ValueError, match="kv_budget="):
        gen("a", kv_budget=tokens)
    with pytest.raises(ValueError, match="kv_budget="), kv_budget(tokens):
        pass
    with pytest.raises(ValueError, match="kv_budget="):
        BudgetedEndpoint(url, kv_budget=tokens)


def test_block_ends_with_an_error(server, url):
    with pytest.raises(RuntimeError), kv_budget(128):
        raise RuntimeError
    assert gen("a").sampling_params.dtype is None
