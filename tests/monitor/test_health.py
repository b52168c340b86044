# SPDX-License-Identifier: Apache-2.0
"""The health routes of a server whose requests wait although nothing runs."""

import asyncio
import json

import pytest

from sglang_longflow.monitor.health import UNHEALTHY_AFTER_S, StalledIsUnhealthy
from sglang_longflow.monitor.snapshots import Look, SchedulerSilent, Snapshot


async def sglang(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def ask(path, snapshot):
    """(status, body) of a GET."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path}
    asyncio.run(StalledIsUnhealthy(sglang, snapshot)(scope, None, send))
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent)


def says(stalled_s):
    async def snapshot(max_age_s):
        return Look(Snapshot(0.0, 0.0, {"stalled_s": stalled_s}, b""), late=False)

    return snapshot


@pytest.mark.parametrize("path", ["/health", "/health_generate"])
def test_a_long_stall_is_unhealthy_and_says_so(path):
    status, body = ask(path, says(UNHEALTHY_AFTER_S + 5))
    assert status == 503
    assert json.loads(body)["message"] == "requests have waited for 65 s and nothing runs"


@pytest.mark.parametrize("stalled_s", [0.0, UNHEALTHY_AFTER_S - 1])
def test_a_short_one_is_not(stalled_s):
    assert ask("/health", says(stalled_s)) == (200, b"")


def test_other_routes_are_not_looked_at():
    assert ask("/generate", says(1000.0))[0] == 200


def test_a_silent_scheduler_is_left_to_sglangs_own_check():
    async def silent(max_age_s):
        raise SchedulerSilent("busy")

    async def slow(max_age_s):
        await asyncio.sleep(30)

    async def unknown(max_age_s):
        return Look(None, late=True)

    assert ask("/health", silent)[0] == 200
    assert ask("/health", unknown)[0] == 200
    assert ask("/health", slow)[0] == 200
