# SPDX-License-Identifier: Apache-2.0
"""``GET /health`` of a server whose requests wait although nothing runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from sglang_longflow.monitor.snapshots import Look, SchedulerSilent

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: From then on the server is unhealthy: long enough for anything that is merely slow.
UNHEALTHY_AFTER_S = 60.0
_MAX_AGE_S = 5.0
_ANSWER_WITHIN_S = 1.0
_PATHS = ("/health", "/health_generate")


class StalledIsUnhealthy:
    """ASGI middleware: 503 on the health routes after `UNHEALTHY_AFTER_S` seconds of a stall.

    SGLang calls a server healthy whose scheduler answers anything at all, so one that serves
    nobody any more would never be restarted. If the scheduler does not say how it is, SGLang's
    own check decides.
    """

    def __init__(self, app: Any, look: Callable[[float], Awaitable[Look]]):
        self.app = app
        self._look = look

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in _PATHS:
            stalled_s = await self._stalled_s()
            if stalled_s >= UNHEALTHY_AFTER_S:
                await _answer(send, f"requests have waited for {stalled_s:.0f} s and nothing runs")
                return
        await self.app(scope, receive, send)

    async def _stalled_s(self) -> float:
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                found = (await self._look(_MAX_AGE_S)).snapshot
            return found.stats["stalled_s"] if found else 0.0
        except (SchedulerSilent, TimeoutError):
            return 0.0


async def _answer(send: Send, message: str) -> None:
    body = {"object": "error", "message": message, "type": "503", "code": 503}
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})
