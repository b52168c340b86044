# SPDX-License-Identifier: Apache-2.0
"""Fills the history of a server while it runs: one question to the schedulers per interval."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from sglang_longflow.monitor.history import INTERVAL_S, History, Local, Reading
from sglang_longflow.monitor.snapshots import DEFAULT_MAX_AGE_S, Look, SchedulerSilent

logger = logging.getLogger(__name__)


class Sampler:
    """Reads what a server does, at whole intervals of its clock.

    It decides nothing and ends nothing: what fails in it is logged once, leaves a gap, and the
    next interval is tried.

    Parameters
    ----------
    look : callable
        `Snapshots.get`: viewers and the sampler share an answer.
    local : callable
        What the HTTP process has counted.
    """

    def __init__(self, look: Callable[[float], Awaitable[Look]], local: Callable[[], Local]):
        self.history = History()
        self._look = look
        self._local = local
        self._logged: set[str] = set()
        # Unix time that no step of the machine's clock moves: readings stay in order.
        self._offset_s = time.time() - time.monotonic()

    def now(self) -> float:
        """Unix seconds, by which the history is kept."""
        return self._offset_s + time.monotonic()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            due_s = (self.now() // INTERVAL_S + 1) * INTERVAL_S
            await asyncio.sleep(due_s - self.now())
            # A sleep may end a moment early, in the interval before.
            await self.sample(max(due_s, self.now()))

    async def sample(self, at_s: float) -> None:
        """One reading at `at_s` (Unix seconds); never raises."""
        reading: Reading | None = None
        local: Local | None = None
        try:
            local = self._local()
        except Exception as error:
            self._log_once("latencies and refusals", error)
        try:
            look = await self._look(DEFAULT_MAX_AGE_S)
            if look.snapshot is not None and not look.late:
                reading = Reading.of(look.snapshot.stats)
        except SchedulerSilent:
            pass  # a gap
        except Exception as error:
            self._log_once("the schedulers' numbers", error)
        try:
            self.history.record(at_s, reading, local)
        except Exception as error:
            self._log_once("the history", error)

    def _log_once(self, what: str, error: Exception) -> None:
        if what not in self._logged:
            self._logged.add(what)
            logger.error(
                "longflow: no reading of %s, a gap in the charts; said once", what, exc_info=error
            )


class WhileServing:
    """ASGI middleware: `work` runs from the end of the app's start-up until its end."""

    def __init__(self, app: Any, work: Callable[[], Awaitable[None]]):
        self.app, self._work = app, work

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        task: asyncio.Future[None] | None = None

        async def tell(message: MutableMapping[str, Any]) -> None:
            nonlocal task
            if message["type"] == "lifespan.startup.complete":
                task = asyncio.ensure_future(self._work())
            await send(message)

        try:
            await self.app(scope, receive, tell)
        finally:
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
