# SPDX-License-Identifier: Apache-2.0
"""The console's routes on a server with a key and limits: who may ask, and what is told."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

import harness
from sglang_longflow.planner.geometry import load_geometry
from sglang_longflow.planner.weights import weights_bytes
from waiting import until

pytestmark = pytest.mark.e2e
KEY = "right-key"
POOL, BUDGET = 3000, 96
SECRET = "zanzibar marmalade"
#: So many tokens that a request runs until it is aborted.
ENDLESS = 90_000
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def server(endless_with_tokenizer):
    arguments = ["--model-path", str(endless_with_tokenizer), "--dtype", "float32"]
    arguments += ["--max-total-tokens", str(POOL), "--kv-budget", str(BUDGET)]
    arguments += ["--kv-budget-allow-full", "--api-key", KEY, "--served-model-name", "tiny"]
    arguments += ["--max-running-requests", "4", "--max-queued-requests", "2", "--enable-metrics"]
    with harness.Server(arguments) as running:
        yield running.wait_ready()


def ask(server, path: str, key: str | None = KEY, body: dict | bytes | None = None):
    """(status, headers, text)."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    request = urllib.request.Request(server.url + path, data)
    request.add_header("Content-Type", "application/json")
    if key is not None:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=600) as response:
            return response.status, response.headers, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def stats(server, max_age_s: float = 0) -> dict:
    def look() -> dict | None:
        status, _, text = ask(server, f"/longflow/stats?max_age_s={max_age_s}")
        assert status == 200, text
        found = json.loads(text)
        return found if found["state"] == "ok" else None  # else a busy machine's long step

    return until(look)


def body_of(rid: str, new_tokens: int, **params) -> dict:
    params = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True, **params}
    return {"text": f"Hello {SECRET}", "rid": rid, "sampling_params": params}


def generate(server, rid: str, new_tokens: int):
    return ask(server, "/generate", body=body_of(rid, new_tokens))


def load(server, rids: list[str], new_tokens: int = ENDLESS, **params):
    """Requests that run meanwhile, and are aborted at the end."""
    bodies = [body_of(rid, new_tokens, **params) for rid in rids]
    return server.busy_with(*bodies, headers={"Authorization": f"Bearer {KEY}"})


ROUTES = ["", "/static/console.js", "/stats", "/history", "/plan?budget=96"]


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_asks_for_the_key(server, route):
    """SGLang's middleware opens /health and /metrics only; the page is no exception."""
    path = f"/longflow{route}"
    for key in (None, "", "wrong-key", KEY + "x"):
        status, _, text = ask(server, path, key)
        assert status == 401 and "tiny" not in text, (key, text)
    status, headers, text = ask(server, path)
    assert status == 200 and text
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert ask(server, "/metrics", None)[0] == 200


def test_the_owners_of_slots_sum_to_the_pool(server):
    """While requests of every kind run, and exactly once nothing does."""

    def owned(found):
        rows = [row["own_tokens"] for row in found["requests"] + found["prefilling"]]
        pool = found["pool"]
        return (
            sum(rows)
            + found["tree_held_tokens"]
            + pool["evictable_tokens"]
            + pool["available_tokens"]
        )

    def all_three(found):
        sums = found["sums"]
        past = [row["rid"] for row in found["requests"] if row["seq_len"] > row["kv_budget"] > 0]
        return sorted(past) == ["a", "b"] and sums["full_kv_requests"] == 1

    with contextlib.ExitStack() as running:
        running.enter_context(load(server, ["a", "b"]))
        until(lambda: stats(server)["sums"]["at_budget_requests"] == 2)
        # No longer than the pool; one that ended before anybody looked is sent again.
        running.enter_context(load(server, ["c"], 2400, custom_params={"kv_budget": 0}))
        found = until(lambda: (s := stats(server)) and all_three(s) and s)
        assert owned(found) == POOL == found["pool"]["total_tokens"]
        rows = {row["rid"]: row for row in found["requests"]}
        assert found["sums"]["at_budget_requests"] == 2
        assert rows["a"]["own_tokens"] == rows["a"]["kv_len"] == BUDGET < rows["a"]["seq_len"]
        assert rows["c"]["kv_budget"] == 0 and rows["c"]["kv_len"] == rows["c"]["seq_len"]
        assert found["sums"]["saved_tokens"] == sum(
            row["seq_len"] - row["kv_len"] for row in found["requests"]
        )
        later = stats(server)
        assert later["uptime_s"] > found["uptime_s"]
        assert later["counters"]["decoded_tokens"] >= found["counters"]["decoded_tokens"] > 0
    until(lambda: not stats(server)["requests"])
    assert owned(stats(server)) == POOL


def test_a_full_queue_is_a_503_and_the_queue_is_shown(server):
    with contextlib.ExitStack() as running:
        for number in range(1, 5):  # one by one: no more than two may wait at any time
            running.enter_context(load(server, [f"run{number}"]))
            until(lambda n=number: stats(server)["sums"]["running_requests"] == n)
        with load(server, ["wait0", "wait1"], 600):
            found = until(lambda: (s := stats(server))["queued_requests"] == 2 and s)
            assert {row["rid"] for row in found["queue"]} == {"wait0", "wait1"}
            assert found["queue"][0]["kv_budget"] == BUDGET
            assert found["queue"][0]["max_new_tokens"] == 600
            status, _, text = generate(server, "too-many", 5)
            assert status == 503 and "queue is full" in text
    until(lambda: not stats(server)["requests"])
    assert generate(server, "again", 3)[0] == 200


def test_limits_are_4xx_and_the_server_lives_on(server):
    long = {"input_ids": harness.prompt(4200, 1), "sampling_params": {"max_new_tokens": 5}}
    status, _, text = ask(server, "/generate", body=long)
    assert status == 400 and "4200" in text
    for body in (b"{", b"[]", b"\xff\xfe", b'{"text": "x", "sampling_params": 7}'):
        assert 400 <= ask(server, "/generate", body=body)[0] < 500, body
    for query in ("budget=33", "budget=3001", "budget=96&prompt_tokens=3001", "users=2"):
        assert ask(server, f"/longflow/plan?{query}")[0] == 400
    assert ask(server, "/longflow/stats?max_age_s=nan")[0] == 400
    assert ask(server, "/longflow/stats", body=b"{}")[0] == 405
    assert generate(server, "after", 3)[0] == 200


def test_no_text_of_requests_is_told_and_a_rid_is_data(server):
    with load(server, [EVIL]):
        found = until(lambda: (s := stats(server))["requests"] and s)
        assert [row["rid"] for row in found["requests"]] == [EVIL]
        for route in ROUTES:
            _, headers, text = ask(server, f"/longflow{route}")
            assert not any(word in text.lower() for word in SECRET.split()), route
            assert EVIL not in text or headers["Content-Type"] == "application/json"


def test_the_plan_is_about_this_pool(server, endless_with_tokenizer):
    plan = json.loads(ask(server, "/longflow/plan?budget=96&prompt_tokens=20&output_tokens=900")[2])
    assert plan["pool_tokens"] == POOL and plan["rows_budget"] == POOL // 96
    assert plan["kv_bytes_per_token"] == 2 * 2 * 2 * 64 * 4  # layers, K and V, heads, size, float32
    settings = stats(server)["settings"]
    assert settings["weights_bytes"] == weights_bytes(
        load_geometry(str(endless_with_tokenizer)), "float32"
    )
    assert settings["kv_pool_bytes"] // plan["kv_bytes_per_token"] in (POOL, POOL + 1)


def test_many_viewers_cost_one_question_a_second(server):
    """A question's answer has its own uptime; three viewers ask a hundred times."""
    seen: set[float] = set()
    begin = time.monotonic()

    def watch():
        for _ in range(33):
            seen.add(stats(server, max_age_s=1)["uptime_s"])
            time.sleep(0.05)

    with ThreadPoolExecutor(3) as viewers:
        for viewer in [viewers.submit(watch) for _ in range(3)]:
            viewer.result()
    # The first answer may have been there before, and a second has always just begun.
    assert 2 <= len(seen) <= time.monotonic() - begin + 2
    # Whoever wants none but new answers waits for them.
    begin = time.monotonic()
    assert len({stats(server)["uptime_s"] for _ in range(5)}) == 5
    assert time.monotonic() - begin >= 0.4


def test_the_history_is_that_of_the_server(server):
    """Its own readings, and SGLang's latencies of streamed requests; watching leaves no lines."""

    def columns() -> dict:
        found = json.loads(ask(server, "/longflow/history?span_s=60&step_s=5")[2])
        assert found["missing"] == {} and {len(c) for c in found["columns"].values()} == {12}
        return found["columns"]

    def last() -> dict:
        return {name: column[-1] for name, column in columns().items()}

    body = {"text": "Hello", "stream": True, "rid": "streamed"}
    body["sampling_params"] = {"max_new_tokens": 20, "ignore_eos": True}

    def two_run() -> dict | None:
        found = last()
        running = found["running_requests"] == 2 and found["budgeted_tokens"]
        return found if running and found["decoded_tokens_per_s"] else None

    with load(server, ["a", "b"]):
        found = until(two_run)
        slots = ("budgeted", "full_kv", "prefill", "tree_held", "evictable", "free")
        assert 0 <= POOL - sum(found[f"{name}_tokens"] for name in slots) < 2 * BUDGET
        assert found["budgeted_tokens"] > 0
        assert ask(server, "/generate", body=body)[0] == 200
        until(lambda: any(columns()["time_to_first_token_p50_s"]))
        found = until(lambda: any((now := columns())["inter_token_p50_s"]) and now)
        pairs = zip(found["inter_token_p50_s"], found["inter_token_p95_s"])
        assert all(0 < half <= most for half, most in pairs if half is not None)
    until(lambda: last()["running_requests"] == 0)  # idle is no gap
    lines = server.log.read_text().splitlines()
    assert [line for line in lines if "GET /longflow/" in line and '" 200' in line] == []
    assert [line for line in lines if "GET /health " in line] == []
    assert any("POST /generate" in line for line in lines)


def longflow_top(server, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "ignore", "-m", "sglang_longflow.cli", "top"]
    command += ["--url", server.url, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_longflow_top(server):
    refused = longflow_top(server, "--once")
    assert refused.returncode == 1 and "give --api-key" in refused.stderr
    with load(server, ["watched"]):
        until(lambda: stats(server)["sums"]["at_budget_requests"] == 1)
        done = longflow_top(server, "--once", "--api-key", KEY)
        assert done.returncode == 0, done.stderr
        (row,) = [line.split() for line in done.stdout.splitlines() if "watched" in line]
        assert row[2:4] == ["96", "96"] and row[5] == "longflow-novel"
        assert "running 1, 1 at budget" in done.stdout
        found = json.loads(longflow_top(server, "--once", "--json", "--api-key", KEY).stdout)
        assert found["requests"][0]["rid"] == "watched" and found["rates"] is None
