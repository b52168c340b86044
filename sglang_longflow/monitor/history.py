# SPDX-License-Identifier: Apache-2.0
"""What a server did over the last day: readings every 5 seconds for an hour, per minute before.

Latencies are kept as counts per bucket of SGLang's own histograms, so that a longer interval's
percentile is that of all its requests and not a mean of percentiles.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sglang_longflow.monitor.owners import owners

#: Seconds: one reading is taken per interval.
INTERVAL_S = 5
FINE_SPAN_S = 3600
COARSE_STEP_S = 60
COARSE_SPAN_S = 24 * 3600
#: An answer has at most so many points, unless it is asked for more.
DEFAULT_POINTS = 180
GAUGES = (
    *("running_requests", "queued_requests", "at_budget_requests"),
    *("budgeted_tokens", "full_kv_tokens", "prefill_tokens"),
    *("tree_held_tokens", "evictable_tokens", "free_tokens"),
)
RATES = ("decoded_tokens", "overwritten_tokens")
LATENCIES = ("time_to_first_token", "inter_token")
PERCENTILES = (50, 95)


class SpanError(ValueError):
    """A span or a step that is not kept; the message names field, value and limit."""


@dataclass(frozen=True)
class Histogram:
    """A Prometheus histogram since the process's start.

    Attributes
    ----------
    bounds_s : tuple of float
        Upper bounds of the buckets in seconds, ascending; the last is infinite. Empty before the
        first observation.
    counts : tuple of int
        Observations per bucket, not cumulative.
    """

    bounds_s: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Local:
    """What the HTTP process itself has counted since its start.

    Attributes
    ----------
    refused_requests : int
    latencies : mapping of str to Histogram
        By a name of `LATENCIES`; without those that are not measured.
    missing : mapping of str to str
        Why a latency is not measured, by its name.
    """

    refused_requests: int = 0
    latencies: Mapping[str, Histogram] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """What the schedulers said at one moment.

    Attributes
    ----------
    uptime_s : float
    gauges : tuple of int
        In the order of `GAUGES`.
    totals : tuple of int
        Since the start, in the order of `RATES`.
    pool_tokens : int
    """

    uptime_s: float
    gauges: tuple[int, ...]
    totals: tuple[int, ...]
    pool_tokens: int

    @classmethod
    def of(cls, stats: dict[str, Any]) -> Reading:
        """Of what `snapshots.merge` makes of the schedulers' answers."""
        sums, found = stats["sums"], owners(stats)
        slots = ("budgeted", "full", "prefill", "held", "evictable", "free")
        return cls(
            uptime_s=stats["uptime_s"],
            gauges=(
                sums["running_requests"],
                stats["queued_requests"],
                sums["at_budget_requests"],
                *(found[name] for name in slots),
            ),
            totals=tuple(stats["counters"][name] for name in RATES),
            pool_tokens=stats["pool"]["total_tokens"],
        )


class Cell:
    """Readings of one interval, added up; intervals add up to longer ones."""

    __slots__ = ("gauges", "latencies", "readings", "refused", "seconds", "totals")

    def __init__(self) -> None:
        self.readings = 0
        self.gauges = [0] * len(GAUGES)  # sums over the readings
        self.seconds = 0.0  # that `totals` cover
        self.totals = [0] * len(RATES)
        self.refused = 0
        # Observations by the place of their bucket: most of them are empty.
        self.latencies: tuple[Counter[int], ...] = tuple(Counter() for _ in LATENCIES)

    def add(self, other: Cell) -> None:
        self.readings += other.readings
        self.gauges = [a + b for a, b in zip(self.gauges, other.gauges, strict=True)]
        self.seconds += other.seconds
        self.totals = [a + b for a, b in zip(self.totals, other.totals, strict=True)]
        self.refused += other.refused
        for mine, theirs in zip(self.latencies, other.latencies, strict=True):
            mine.update(theirs)


@dataclass
class _Ring:
    """Cells by their number since the epoch; the oldest leave."""

    step_s: int
    span_s: int

    def __post_init__(self) -> None:
        self.cells: deque[tuple[int, Cell]] = deque(maxlen=self.span_s // self.step_s)

    def add(self, at_s: float, cell: Cell) -> None:
        number = int(at_s // self.step_s)
        if not self.cells or self.cells[-1][0] != number:
            self.cells.append((number, Cell()))
        self.cells[-1][1].add(cell)


def percentile(bounds_s: Sequence[float], counts: Mapping[int, int], percent: int) -> float | None:
    """In seconds, within its bucket as Prometheus' histogram_quantile interpolates; None of none.

    In the last bucket, which has no upper bound, it is the lower one.
    """
    rank, seen, low = sum(counts.values()) * percent / 100, 0, 0.0
    if not rank:
        return None
    for place, high in enumerate(bounds_s):
        count = counts.get(place, 0)
        if count and seen + count >= rank:
            return low if math.isinf(high) else low + (high - low) * (rank - seen) / count
        seen, low = seen + count, high
    return low


class History:
    """Readings of the last day in bounded memory: 720 intervals of 5 s and 1,440 of a minute."""

    def __init__(self) -> None:
        self._fine = _Ring(INTERVAL_S, FINE_SPAN_S)
        self._coarse = _Ring(COARSE_STEP_S, COARSE_SPAN_S)
        self._last: Reading | None = None
        self._local = Local()
        self._pool_tokens: int | None = None
        self._tried_at_s = -math.inf

    def record(self, at_s: float, reading: Reading | None, local: Local | None) -> None:
        """Add a reading; None is a gap, over which counters go on.

        Parameters
        ----------
        at_s : float
            Unix seconds, never less than those before.
        """
        cell = Cell()
        if reading is not None:
            cell.readings, cell.gauges = 1, list(reading.gauges)
            seconds = reading.uptime_s - self._last.uptime_s if self._last else 0.0
            since = self._last.totals if self._last else reading.totals
            totals = [now - before for now, before in zip(reading.totals, since, strict=True)]
            if seconds > 0 and min(totals) >= 0:  # else a scheduler has started anew
                cell.seconds, cell.totals = seconds, totals
            self._last, self._pool_tokens = reading, reading.pool_tokens
        if local is not None:
            self._add_local(cell, local)
        self._tried_at_s = at_s
        self._fine.add(at_s, cell)
        self._coarse.add(at_s, cell)

    def _add_local(self, cell: Cell, local: Local) -> None:
        cell.refused = max(0, local.refused_requests - self._local.refused_requests)
        for place, name in enumerate(LATENCIES):
            now, before = local.latencies.get(name), self._local.latencies.get(name)
            if now is None or before is None:
                continue
            # Prometheus has no buckets, nor their bounds, before the first observation.
            since = before.counts or (0,) * len(now.counts)
            counts = [a - b for a, b in zip(now.counts, since, strict=True)]
            cell.latencies[place].update({i: n for i, n in enumerate(counts) if n > 0})
        self._local = local

    def table(self, now_s: float, span_s: int, step_s: int | None = None) -> dict[str, Any]:
        """The last `span_s` seconds in columns, a row per `step_s`; docs/operate/console.md.

        Raises
        ------
        SpanError
            `step_s` is finer than what is kept, or longer than `span_s`.
        """
        ring = self._fine if span_s <= FINE_SPAN_S else self._coarse
        if step_s is None:
            step_s = ring.step_s * math.ceil(span_s / ring.step_s / DEFAULT_POINTS)
        if step_s % ring.step_s:
            raise SpanError(
                f"step_s={step_s}: expected a multiple of {ring.step_s}, at which "
                f"{'the last hour' if ring is self._fine else 'a span over an hour'} is kept"
            )
        if step_s > span_s:
            raise SpanError(f"step_s={step_s}: expected at most {span_s}, the span_s")
        # The interval that no reading was due in yet is left out: it would look like a gap.
        end_s = max(self._tried_at_s, now_s - 2 * INTERVAL_S)
        last = int(end_s // step_s)
        cells: list[Cell | None] = [None] * (span_s // step_s)
        first = last - len(cells) + 1
        for number, cell in ring.cells:
            place = int(number * ring.step_s // step_s) - first
            if 0 <= place < len(cells):
                if cells[place] is None:
                    cells[place] = Cell()
                cells[place].add(cell)  # type: ignore[union-attr]
        return {
            "now": round(now_s, 3),
            "span_s": span_s,
            "step_s": step_s,
            "pool_tokens": self._pool_tokens,
            "t": [(first + place) * step_s for place in range(len(cells))],
            "columns": dict(self._columns(cells)),
            "missing": {
                f"{name}_p{percent}_s": why
                for name, why in self._local.missing.items()
                for percent in PERCENTILES
            },
        }

    def _columns(self, cells: list[Cell | None]) -> Iterator[tuple[str, list[float | None]]]:
        for i, name in enumerate(GAUGES):
            yield (
                name,
                [round(c.gauges[i] / c.readings, 1) if c and c.readings else None for c in cells],
            )
        for i, name in enumerate(RATES):
            yield (
                f"{name}_per_s",
                [round(c.totals[i] / c.seconds, 1) if c and c.seconds else None for c in cells],
            )
        yield "refused_requests", [c.refused if c else None for c in cells]
        for i, name in enumerate(LATENCIES):
            histogram = self._local.latencies.get(name)
            if histogram is None:
                continue
            for percent in PERCENTILES:
                found = [
                    percentile(histogram.bounds_s, c.latencies[i], percent) if c else None
                    for c in cells
                ]
                yield (
                    f"{name}_p{percent}_s",
                    [None if value is None else round(value, 5) for value in found],
                )
