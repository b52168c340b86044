"""One question to the schedulers, shared by everyone who watches."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from sglang_longflow.flow.metrics import RowStats, gauges

#: How old an answer may be that nobody asked to be newer: many viewers cost one question a second.
DEFAULT_MAX_AGE_S = 1.0
MAX_AGE_LIMIT_S = 60.0
#: Questions are at least this far apart, whatever is asked: a scheduler answers between two steps.
MIN_INTERVAL_S = 0.1
ANSWER_TIMEOUT_S = 5.0


class SchedulerSilent(Exception):
    """No answer in time, or none with a budget; becomes a 503."""


@dataclass(frozen=True)
class Snapshot:
    """What the schedulers said to a question sent at `asked_at` (monotonic seconds)."""

    asked_at: float
    stats: dict[str, Any]
    body: bytes


def merge(states: list[dict[str, Any]], server: dict[str, Any]) -> dict[str, Any]:
    """One answer of several data-parallel schedulers: pools, counters and queues are summed.

    Parameters
    ----------
    states : list of dict
        ``hooks.stats.snapshot`` of each scheduler; at least one. Not changed.
    server : dict
        What the HTTP process itself knows.
    """
    first = states[0]
    rows = [RowStats(*row) for state in states for row in state["requests"]]
    live = gauges(rows)
    pool = {key: sum(state["pool"][key] for state in states) for key in first["pool"]}
    return {
        "server": {**server, "schedulers": len(states)},
        "settings": first["settings"],
        "pool": {**pool, "budgeted_tokens": live.budgeted_tokens},
        "counters": {
            key: sum(state["counters"][key] for state in states) for key in first["counters"]
        },
        **{
            name: sum(state[name] for state in states)
            for name in ("tree_held_tokens", "queued_requests")
        },
        "sums": {
            "running_requests": len(rows),
            "at_budget_requests": live.rows_at_budget,
            "full_kv_requests": sum(row.kv_budget == 0 for row in rows),
            "saved_tokens": live.saved_tokens,
        },
        "requests": [row._asdict() for row in rows],
        **{
            name: [item for state in states for item in state[name]]
            for name in ("prefilling", "queue")
        },
        "paused": any(state["paused"] for state in states),
        "stalled_s": max(state["stalled_s"] for state in states),
        "uptime_s": min(state["uptime_s"] for state in states),
    }


class Snapshots:
    """Asks the schedulers, one question at a time, and keeps the last answer.

    Parameters
    ----------
    ask : callable
        Sends a question; its result is what `merge` takes, already merged.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[dict[str, Any]]],
        min_interval_s: float = MIN_INTERVAL_S,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ):
        self._ask = ask
        self._min_interval_s = min_interval_s
        self._timeout_s = timeout_s
        self._last: Snapshot | None = None
        self._last_asked_at = float("-inf")
        self._question: asyncio.Task | None = None

    async def get(self, max_age_s: float = DEFAULT_MAX_AGE_S) -> Snapshot:
        """The last answer if it was asked for at most `max_age_s` ago, else a new one.

        Raises
        ------
        SchedulerSilent
            The schedulers do not answer in time.
        """
        now = time.monotonic()
        while self._last is None or self._last.asked_at < now - max_age_s:
            if self._question is None:
                self._question = asyncio.create_task(self._ask_once())
            question = self._question
            left_s = now + self._timeout_s - time.monotonic()
            # Not wait_for: it would cancel the question for everyone, and SGLang would take the
            # late answer for that to its next question.
            done, _ = await asyncio.wait({question}, timeout=max(0.0, left_s))
            if not done:
                raise SchedulerSilent(
                    f"the scheduler has not answered for {self._timeout_s:g} seconds: it is busy "
                    f"with one long step, or gone"
                )
            question.result()
        return self._last

    async def _ask_once(self) -> None:
        try:
            await asyncio.sleep(self._last_asked_at + self._min_interval_s - time.monotonic())
            self._last_asked_at = asked_at = time.monotonic()
            stats = await self._ask()
            body = json.dumps(stats, separators=(",", ":")).encode()
            self._last = Snapshot(asked_at, stats, body)
        finally:
            self._question = None
