# SPDX-License-Identifier: Apache-2.0
"""Our routes on a FastAPI app of their own: bounds, one-line errors, headers. No scheduler."""

import asyncio
import itertools
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from sglang_longflow.hooks import http
from sglang_longflow.monitor import snapshots
from sglang_longflow.monitor.snapshots import SchedulerSilent, Snapshots
from sglang_longflow.monitor.what_if import RunningServer
from sglang_longflow.planner.geometry import load_geometry

#: How long an answer is waited for: always long enough, or too short for one that is held.
PATIENT_S, IMPATIENT_S = 300.0, 0.1
SETTINGS = {"device_name": "cpu", "device_memory_bytes": None, "weights_bytes": 0}
SETTINGS |= {"kv_policy": "longflow-novel", "kv_victims": "layer"}
SETTINGS |= {"kv_protect_sink_tokens": 0, "kv_protect_recent_tokens": 0}


@pytest.fixture
def asked():
    """Questions to the scheduler; set its ``answer`` to an exception to make them fail."""

    class Asked:
        count = 0
        held = False  # in one long step
        answer = {"settings": SETTINGS, "requests": [{"rid": "<script>alert(1)</script>\ud800"}]}

        async def __call__(self):
            self.count += 1
            while self.held:
                await asyncio.sleep(0.01)
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    scheduler = Asked()
    scheduler.manager = SimpleNamespace(served_model_name="tiny", _subprocess_watchdog=None)
    return scheduler


@pytest.fixture
def client(asked):
    app = FastAPI()
    state = app.state.longflow = http.HttpState(asked.manager, {})
    state.snapshots = Snapshots(asked, state.ended, 0, PATIENT_S)
    state.server = RunningServer(load_geometry("qwen3-1.7b"), 5000, 1, "bfloat16", "auto")
    app.include_router(http.router)
    with TestClient(app) as running:
        yield running


def test_every_answer_is_guarded(client):
    for path in (
        "",
        "/static/console.js",
        "/stats",
        "/history",
        "/plan?budget=96",
        "/plan",
        "/static/x",
    ):
        headers = client.get(f"/longflow{path}").headers
        assert headers["X-Content-Type-Options"] == "nosniff", path
        assert "script-src 'self'" in headers["Content-Security-Policy"], path
        assert "unsafe" not in headers["Content-Security-Policy"], path
    assert client.get("/longflow").headers["Content-Type"] == "text/html; charset=utf-8"
    assert client.get("/longflow/stats").headers["Content-Type"] == "application/json"
    assert client.get("/longflow/stats").headers["Cache-Control"] == "no-store"


def hold(client, asked, held: bool) -> None:
    asked.held = held
    client.app.state.longflow.snapshots._patience_s = IMPATIENT_S if held else PATIENT_S


def test_stats_are_shared(client, asked, monkeypatch):
    ticks = itertools.count()  # twenty looks within a second, however long they take
    clock = SimpleNamespace(monotonic=lambda: next(ticks) / 1000)
    monkeypatch.setattr(snapshots, "time", clock)
    for _ in range(20):
        assert client.get("/longflow/stats").status_code == 200
    assert asked.count == 1
    client.get("/longflow/stats?max_age_s=0")
    assert asked.count == 2


def test_history_of_a_server_that_has_just_started(client):
    """Asking costs the scheduler nothing, and nothing is made up."""
    found = client.get("/longflow/history?span_s=60&step_s=10").json()
    assert (found["span_s"], found["step_s"], len(found["t"])) == (60, 10, 6)
    assert found["columns"]["running_requests"] == [None] * 6


def test_a_request_id_stays_text(client):
    answer = client.get("/longflow/stats")
    assert answer.json()["requests"][0]["rid"] == "<script>alert(1)</script>\ud800"
    assert answer.content.isascii()


def test_a_plan(client):
    plan = client.get("/longflow/plan?budget=100&prompt_tokens=50&output_tokens=800").json()
    assert (plan["pool_tokens"], plan["rows_budget"]) == (5000, 50)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("stats?max_age_s=-1", ["max_age_s='-1'", "greater than or equal to 0"]),
        ("stats?max_age_s=61", ["max_age_s='61'", "less than or equal to 60"]),
        ("stats?max_age_s=nan", ["max_age_s='nan'", "finite"]),
        ("stats?max_age_s=soon", ["max_age_s='soon'", "number"]),
        ("history?span_s=4", ["span_s='4'", "5"]),
        ("history?span_s=86401", ["span_s='86401'", "86400"]),
        ("history?span_s=600&step_s=7", ["step_s=7", "multiple of 5"]),
        ("plan", ["budget: is required"]),
        ("plan?budget=37", ["budget='37'", "38"]),
        ("plan?budget=5001", ["budget=5001", "from 38 to 5000"]),
        ("plan?budget=many", ["budget='many'", "integer"]),
        ("plan?budget=9999999999999999999999", ["budget='9999", "10000000"]),
        ("plan?budget=96&output_tokens=0", ["output_tokens='0'", "1"]),
        ("plan?budget=96&output_tokens=10000001", ["output_tokens", "10000000"]),
        ("plan?budget=96&prompt_tokens=5001", ["prompt_tokens=5001", "5000"]),
        ("plan?budget=96&users=0", ["users='0'", "1"]),
    ],
)
def test_wrong_values_are_400_with_field_value_and_limit(client, query, words):
    answer = client.get(f"/longflow/{query}")
    assert answer.status_code == 400
    message = answer.json()["message"]
    assert all(word in message for word in words) and "\n" not in message, message


def test_schedulers_without_a_budget_are_a_503(client, asked):
    asked.answer = SchedulerSilent("the schedulers have no KV budget")
    for path in ("stats", "plan?budget=96"):
        answer = client.get(f"/longflow/{path}")
        assert answer.status_code == 503 and "no KV budget" in answer.json()["message"]


def test_a_busy_scheduler_is_no_error(client, asked):
    """In its first long step, and in a later one."""
    hold(client, asked, True)
    told = client.get("/longflow/stats")
    assert told.status_code == 200 and told.headers["Cache-Control"] == "no-store"
    found = told.json()
    assert (found["state"], found["age_s"], found["pool"]) == ("busy", None, None)
    assert found["server"] == {"model": "tiny", "longflow": http.__version__, "schedulers": None}
    answer = client.get("/longflow/plan?budget=96")
    assert answer.status_code == 503 and "first long step" in answer.json()["message"]
    hold(client, asked, False)
    while (found := client.get("/longflow/stats?max_age_s=0").json())["state"] != "ok":
        assert asked.count < 3
    assert found["settings"] == SETTINGS
    hold(client, asked, True)
    found = client.get("/longflow/stats?max_age_s=0").json()
    assert found["state"] == "busy" and found["age_s"] >= 0.1 and found["settings"] == SETTINGS
    assert client.get("/longflow/plan?budget=96").status_code == 200
    hold(client, asked, False)


def test_only_a_process_that_has_ended_is_a_503(client, asked):
    class Process:
        pid, exitcode = 77, None

        def is_alive(self):
            return self.exitcode is None

    scheduler, detokenizer = Process(), Process()
    asked.manager._subprocess_watchdog = SimpleNamespace(
        _processes=[scheduler, detokenizer], _names=["scheduler_0", "detokenizer"]
    )
    hold(client, asked, True)
    assert client.get("/longflow/stats").status_code == 200
    scheduler.exitcode = -9
    for path in ("stats?max_age_s=0", "plan?budget=96"):
        answer = client.get(f"/longflow/{path}")
        assert answer.status_code == 503
        assert answer.json()["message"] == "scheduler_0 (process 77) has ended with status -9"


def test_only_the_consoles_files_are_served(client):
    for name in ("page.py", "..%2Fpage.py", "%2e%2e/page.py", "nothing.js"):
        assert client.get(f"/longflow/static/{name}").status_code == 404
    assert client.post("/longflow/stats").status_code == 405
