# SPDX-License-Identifier: Apache-2.0
"""One question to the schedulers, shared by everyone who watches."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from sglang_longflow.core.counters import RowStats, gauges

#: How old an answer may be that nobody asked to be newer: many viewers cost one question a second.
DEFAULT_MAX_AGE_S = 1.0
MAX_AGE_LIMIT_S = 60.0
#: Questions are at least this far apart, whatever is asked: a scheduler answers between two steps.
MIN_INTERVAL_S = 0.1
#: A step of a large prefill on a slow machine takes longer; the last answer is told then.
PATIENCE_S = 2.0
#: Of a request's id, as watches see it.
MOST_ID_CHARACTERS = 256
OK = "ok"
BUSY = "busy"


class SchedulerSilent(Exception):
    """A scheduler's process has ended, or it answers without a budget; becomes a 503."""


@dataclass(frozen=True)
class Snapshot:
    """What the schedulers said to a question.

    Attributes
    ----------
    asked_at, answered_at : float
        Monotonic seconds.
    stats : dict
    inside : bytes
        `stats` as JSON, without the braces.
    """

    asked_at: float
    answered_at: float
    stats: dict[str, Any]
    inside: bytes


@dataclass(frozen=True)
class Look:
    """What a viewer gets.

    Attributes
    ----------
    snapshot : Snapshot or None
        None before the first answer of the schedulers.
    late : bool
        The schedulers live and have not answered in time: an older snapshot stands in.
    """

    snapshot: Snapshot | None
    late: bool

    @property
    def state(self) -> str:
        """``state`` of the stats: "ok", or "busy" in one long step."""
        return BUSY if self.late else OK

    def body(self, unknown: dict[str, Any]) -> bytes:
        """The stats as JSON; `unknown` stands in before the first answer (`not_known`)."""
        head: dict[str, Any] = {"state": self.state, "age_s": None}
        if self.snapshot is None:
            return _json({**head, **unknown})
        head["age_s"] = round(max(0.0, time.monotonic() - self.snapshot.answered_at), 3)
        return b"".join((_json(head)[:-1], b",", self.snapshot.inside, b"}"))


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def not_known(server: dict[str, Any]) -> dict[str, Any]:
    """The stats before the first answer: what only a scheduler knows is null, lists are empty."""
    nothing = ("settings", "pool", "counters", "tree_held_tokens", "queued_requests", "sums")
    return {
        "server": {**server, "schedulers": None},
        **dict.fromkeys(nothing),
        **{name: [] for name in ("requests", "prefilling", "queue")},
        **dict.fromkeys(("paused", "stalled_s", "uptime_s")),
    }


def _shown(item: dict[str, Any]) -> dict[str, Any]:
    """A request with an id that watches can hold: anyone may send one of any length.

    A longer one keeps its beginning, and a hash that tells it from others.
    """
    rid = item["rid"]
    if len(rid) <= MOST_ID_CHARACTERS:
        return item
    digest = hashlib.sha256(rid.encode(errors="surrogatepass")).hexdigest()[:16]
    return {**item, "rid": f"{rid[: MOST_ID_CHARACTERS - 17]}…{digest}"}


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
        "requests": [_shown(row._asdict()) for row in rows],
        **{
            name: [_shown(item) for state in states for item in state[name]]
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
        Sends a question; its result is what `merge` makes of the answers.
    ended : callable
        Why there will be no answer any more, such as a process that has ended; empty while there
        may be one.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[dict[str, Any]]],
        ended: Callable[[], str] = lambda: "",
        min_interval_s: float = MIN_INTERVAL_S,
        patience_s: float = PATIENCE_S,
    ):
        self._ask = ask
        self._ended = ended
        self._min_interval_s = min_interval_s
        self._patience_s = patience_s
        self._last: Snapshot | None = None
        self._last_asked_at = float("-inf")
        self._question: asyncio.Task[None] | None = None

    async def get(self, max_age_s: float = DEFAULT_MAX_AGE_S) -> Look:
        """The last answer if it was asked for at most `max_age_s` ago, else a new one.

        If that does not come in time, the last one is told as late, however old: who
        watches never has to guess whether a busy server lives.

        Raises
        ------
        SchedulerSilent
            A scheduler's process has ended, or there is no budget to tell of.
        """
        now = time.monotonic()
        while self._last is None or self._last.asked_at < now - max_age_s:
            if reason := self._ended():
                raise SchedulerSilent(reason)
            if self._question is None:
                self._question = asyncio.create_task(self._ask_once())
            question = self._question
            left_s = now + self._patience_s - time.monotonic()
            # Not wait_for: it would cancel the question for everyone, and SGLang would take the
            # late answer for that to its next question.
            done, _ = await asyncio.wait({question}, timeout=max(0.0, left_s))
            if not done:
                if reason := self._ended():
                    raise SchedulerSilent(reason)
                return Look(self._last, late=True)
            question.result()
        return Look(self._last, late=False)

    async def _ask_once(self) -> None:
        try:
            await asyncio.sleep(self._last_asked_at + self._min_interval_s - time.monotonic())
            self._last_asked_at = asked_at = time.monotonic()
            stats = await self._ask()
            self._last = Snapshot(asked_at, time.monotonic(), stats, _json(stats)[1:-1])
        finally:
            self._question = None
