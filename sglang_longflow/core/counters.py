# SPDX-License-Identifier: Apache-2.0
"""Metrics: what is counted, and the live view for /longflow/stats. No Prometheus here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

#: A pool may hold this part fewer or more rows than planned: plans are estimates.
ROWS_TOLERANCE = 0.1


@dataclass
class Counters:
    """Totals since start, in tokens unless the name says otherwise."""

    decoded_tokens: int = 0  # rows of all decode steps: what full KV would have appended
    overwritten_tokens: int = 0
    cut_tokens: int = 0
    peak_running_requests: int = 0
    retracted_budgeted_rows: int = 0
    failed_hooks: int = 0  # requests that ended because a hook could not deal with them


class Stall:
    """Since when requests wait although nothing runs; not while the server is paused.

    No such state should exist, because an empty server can admit whatever waits. A server that is
    in it nevertheless must not look healthy.
    """

    #: Seconds: idle turns of the scheduler's loop that are further apart belong to two stalls.
    GAP_S = 5.0

    def __init__(self) -> None:
        self._since: float | None = None
        self._last_turn = float("-inf")

    def idle_turn(self, waiting: int, now: float) -> None:
        """A turn of the scheduler's loop in which nothing ran; `now` in monotonic seconds."""
        if not waiting or now - self._last_turn > self.GAP_S:
            self._since = None
        if waiting and self._since is None:
            self._since = now
        self._last_turn = now

    def running(self) -> None:
        """A batch was launched."""
        self._since = None

    def seconds(self, now: float) -> float:
        """How long it has lasted; 0 if something runs or nothing waits."""
        return 0.0 if self._since is None else now - self._since


class RowStats(NamedTuple):  # made for each row while the scheduler waits: a dataclass is slower
    """One running request in /longflow/stats.

    Attributes
    ----------
    seq_len, kv_len : int
        Logical and resident length in tokens of stored K/V.
    kv_budget : int
        0 is full KV.
    own_tokens, tree_tokens : int
        Slots of the pool that are the row's own, and those of the radix tree that it holds
        (others may hold them too).
    """

    rid: str
    seq_len: int
    kv_len: int
    kv_budget: int
    kv_policy: str
    own_tokens: int = 0
    tree_tokens: int = 0

    @property
    def at_budget(self) -> bool:
        return self.kv_budget > 0 and self.kv_len >= self.kv_budget

    @property
    def saved_tokens(self) -> int:
        """Slots that full KV would hold beyond those this row holds."""
        return max(0, self.seq_len - self.kv_len)


@dataclass(frozen=True)
class LiveGauges:
    """Sums over the running requests."""

    rows_at_budget: int
    budgeted_tokens: int
    saved_tokens: int


def gauges(rows: list[RowStats]) -> LiveGauges:
    """Sum the rows that have a budget; full-KV rows count nowhere."""
    bounded = [row for row in rows if row.kv_budget > 0]
    return LiveGauges(
        rows_at_budget=sum(row.at_budget for row in bounded),
        budgeted_tokens=sum(row.kv_len for row in bounded),
        saved_tokens=sum(row.saved_tokens for row in bounded),
    )


def row_capacity(
    pool_tokens: int, kv_budget: int, max_running_requests: int | None = None
) -> int | None:
    """Requests that the pool holds at the default budget; None if the default is full KV.

    With `max_running_requests`: those that run at once.
    """
    if not kv_budget:
        return None
    fits = pool_tokens // kv_budget
    return fits if max_running_requests is None else min(fits, max_running_requests)


def unplanned_rows(planned: int | None, fits: int | None) -> str:
    """What is wrong where the pool holds other rows than a deployment's numbers count on.

    Parameters
    ----------
    planned : int or None
        ``--kv-planned-rows``.
    fits : int or None
        `row_capacity` of the pool.

    Returns
    -------
    str
        One line with what to change; empty where nothing was planned, or they are close.
    """
    if not planned or fits is None or abs(fits - planned) <= ROWS_TOLERANCE * planned:
        return ""
    percent, word = round(100 * abs(fits - planned) / planned), "fewer"
    effect = "autoscaling and max-running-requests expect more than this server holds"
    if fits > planned:
        word, effect = "more", "max-running-requests and autoscaling leave memory unused"
    return (
        f"{fits} requests fit at the budget, {percent} % {word} than kv_planned_rows={planned}: "
        f"{effect}; render for this card (longflow render --gpu, or --max-total-tokens with this "
        f"pool), or pin the card that was planned for"
    )


def rows_used_ratio(running_requests: int, capacity: int | None) -> float | None:
    """Running requests per request that fits; None without a capacity to compare with.

    It passes 1 if requests choose budgets below the default, so that more of them fit.
    """
    return running_requests / capacity if capacity else None
