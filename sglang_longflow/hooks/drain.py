# SPDX-License-Identifier: Apache-2.0
"""SIGTERM ends the server after its open responses; SGLang waits for its scheduler alone."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from sglang_longflow.hooks.sglang_types import Original, TokenizerManager
from sglang_longflow.settings.config import config_from

POLL_INTERVAL_S = 0.5
#: For the last bytes, which may still be in the HTTP server's buffer.
FLUSH_S = 1.0


@dataclass
class Drain:
    """What an HTTP server knows of its responses."""

    open_responses: int = 0
    draining: bool = False


def drain_of(manager: TokenizerManager) -> Drain:
    """That of a tokenizer manager, which keeps it for SGLang's watchdog and our middleware."""
    found: Drain = manager.__dict__.setdefault("longflow_drain", Drain())
    return found


class CountResponses:
    """ASGI middleware: counts POST requests until the last byte of their response is handed over.

    While the server drains, responses also close their connection: a client that keeps one alive
    would otherwise go on sending its requests to a server that is about to end.
    """

    def __init__(self, app: Any, drain: Drain):
        self.app, self.drain = app, drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        counted = True
        self.drain.open_responses += 1

        def end() -> None:
            nonlocal counted
            self.drain.open_responses -= counted
            counted = False

        async def answer(message: Message) -> None:
            starts = message["type"] == "http.response.start"
            if starts and self.drain.draining and scope["http_version"].startswith("1"):
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                message = {**message, "headers": headers}
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                end()  # what SGLang does in the background afterwards is not the client's

        try:
            await self.app(scope, receive, answer)
        finally:
            end()


async def sigterm_watchdog(original: Original, self: TokenizerManager) -> None:
    """Around ``TokenizerManager.sigterm_watchdog``, which exits once no request is registered."""
    from sglang.srt.managers.tokenizer_manager import ServerStatus
    from sglang.srt.utils import get_bool_env_var

    if config_from(self.server_args) is not None:
        drain = drain_of(self)
        while not self.gracefully_exit:
            await asyncio.sleep(POLL_INTERVAL_S)
        drain.draining = True
        # The two cases in which SGLang does not drain are left to it.
        while (
            drain.open_responses
            and self.server_status != ServerStatus.UnHealthy
            and not get_bool_env_var("SGL_FORCE_SHUTDOWN")
        ):
            await asyncio.sleep(POLL_INTERVAL_S)
        await asyncio.sleep(FLUSH_S)
    await original(self)
