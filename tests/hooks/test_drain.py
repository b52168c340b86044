# SPDX-License-Identifier: Apache-2.0
"""The drain: which responses are waited for, and when SGLang's own shutdown goes on."""

import asyncio
import types

import pytest
from sglang.srt.managers.tokenizer_manager import ServerStatus

from sglang_longflow.hooks import drain

pytestmark = pytest.mark.sglang


@pytest.fixture(autouse=True)
def state(monkeypatch):
    monkeypatch.setattr(drain, "POLL_INTERVAL_S", 0.01)
    monkeypatch.setattr(drain, "FLUSH_S", 0.0)
    return drain.Drain()


def scope(method="POST", http_version="1.1"):
    return {"type": "http", "method": method, "http_version": http_version}


def run(app, state, **changes):
    """The messages that a client gets, each with the open responses after it."""
    sent = []

    async def send(message):
        sent.append((message, state.open_responses))

    asyncio.run(drain.CountResponses(app, state)(scope(**changes), None, send))
    return sent


async def two_parts(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
    await send({"type": "http.response.body", "body": b"1", "more_body": True})
    await send({"type": "http.response.body", "body": b"2"})


def test_a_response_is_open_until_its_last_part(state):
    async def app(scope, receive, send):
        await two_parts(scope, receive, send)
        assert state.open_responses == 0, "background work would be waited for"

    assert [count for _, count in run(app, state)] == [1, 1, 1]
    assert state.open_responses == 0


def test_a_get_is_not_waited_for(state):
    assert [count for _, count in run(two_parts, state, method="GET")] == [0, 0, 0]


def test_a_request_that_fails_is_no_longer_open(state):
    async def fails(scope, receive, send):
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        run(fails, state)
    assert state.open_responses == 0


@pytest.mark.parametrize(
    ("draining", "version", "closes"),
    [(False, "1.1", False), (True, "1.1", True), (True, "2", False)],
)
def test_connections_are_closed_while_draining(state, draining, version, closes):
    state.draining = draining
    start = run(two_parts, state, http_version=version)[0][0]
    assert ((b"connection", b"close") in start["headers"]) is closes
    assert start["headers"][0] == (b"a", b"b")


def watch(monkeypatch, state, budget=True, status=ServerStatus.Up):
    """(manager, task of its watchdog, list that SGLang's own watchdog appends to)."""
    monkeypatch.setattr(drain, "config_from", lambda args: object() if budget else None)
    manager = types.SimpleNamespace(
        gracefully_exit=False, server_args=None, server_status=status, longflow_drain=state
    )
    calls = []

    async def original(self):
        calls.append(self)

    return manager, asyncio.create_task(drain.sigterm_watchdog(original, manager)), calls


def test_sglang_exits_after_the_last_open_response(monkeypatch, state):
    async def scenario():
        manager, task, calls = watch(monkeypatch, state)
        await asyncio.sleep(0.05)
        assert not calls and not state.draining
        state.open_responses = 1
        manager.gracefully_exit = True
        await asyncio.sleep(0.05)
        assert not calls and state.draining
        state.open_responses = 0
        await asyncio.wait_for(task, 300)
        assert calls == [manager]

    asyncio.run(scenario())


@pytest.mark.parametrize("case", ["unhealthy", "forced", "stock"])
def test_what_sglang_does_not_drain_is_not_waited_for(monkeypatch, state, case):
    if case == "forced":
        monkeypatch.setenv("SGL_FORCE_SHUTDOWN", "1")

    async def scenario():
        status = ServerStatus.UnHealthy if case == "unhealthy" else ServerStatus.Up
        manager, task, calls = watch(monkeypatch, state, budget=case != "stock", status=status)
        state.open_responses = 1
        manager.gracefully_exit = True
        await asyncio.wait_for(task, 300)
        assert calls == [manager]

    asyncio.run(scenario())


def test_the_watchdog_and_the_server_share_the_managers_drain():
    manager = types.SimpleNamespace()
    assert drain.drain_of(manager) is drain.drain_of(manager)
    assert drain.drain_of(manager) is not drain.drain_of(types.SimpleNamespace())
