# SPDX-License-Identifier: Apache-2.0
"""The history: what an interval says, gaps, restarts, percentiles, bounded memory."""

import math

import pytest

from sglang_longflow.monitor.history import (
    GAUGES,
    LATENCIES,
    Histogram,
    History,
    Local,
    Reading,
    SpanError,
    percentile,
)

START = 1_800_000_000  # a whole minute
BOUNDS = (0.1, 0.2, 0.4, math.inf)


def reading(uptime_s, running=0, decoded=0, overwritten=0, pool=1000):
    gauges = tuple({"running_requests": running, "free_tokens": pool}.get(g, 0) for g in GAUGES)
    return Reading(uptime_s, gauges, (decoded, overwritten), pool)


def local(refused=0, first=(0, 0, 0, 0), inter=(0, 0, 0, 0)):
    found = [Histogram(BOUNDS, tuple(counts)) for counts in (first, inter)]
    return Local(refused, dict(zip(LATENCIES, found)))


def test_rates_are_differences_over_the_schedulers_own_clock():
    history = History()
    history.record(START, reading(100.0, 2, 5_000, 10), local())
    history.record(START + 5, reading(104.0, 4, 5_400, 30), local(refused=3))
    table = history.table(START + 6, 10, 5)
    columns = table["columns"]
    assert table["t"] == [START, START + 5]
    assert columns["running_requests"] == [2, 4]
    assert columns["decoded_tokens_per_s"] == [None, 100.0]
    assert columns["overwritten_tokens_per_s"] == [None, 5.0]
    assert columns["refused_requests"] == [0, 3]
    assert columns["free_tokens"] == [1000, 1000] and table["pool_tokens"] == 1000
    assert {len(column) for column in columns.values()} == {2}


def test_a_silent_scheduler_is_a_gap_and_idle_is_not():
    """An interval without an answer is null; an idle server says 0."""
    history = History()
    history.record(START, reading(0), local())
    history.record(START + 5, reading(5), local())
    history.record(START + 10, None, local(refused=1))
    history.record(START + 20, reading(20, decoded=300), local(refused=1))
    columns = history.table(START + 20, 25, 5)["columns"]
    assert columns["running_requests"] == [0, 0, None, None, 0]
    # The tokens of the gap are spread over it; nothing is invented inside.
    assert columns["decoded_tokens_per_s"] == [None, 0, None, None, 20.0]
    assert columns["refused_requests"] == [0, 0, 1, None, 0]


def test_the_newest_interval_is_no_gap_before_its_reading_and_one_after():
    history = History()
    history.record(START, reading(0), local())
    assert history.table(START + 9, 5, 5)["t"] == [START]
    late = history.table(START + 30, 10, 5)
    assert late["t"] == [START + 15, START + 20]
    assert late["columns"]["running_requests"] == [None, None]


@pytest.mark.parametrize("anew", [reading(1.0, decoded=50), reading(20.0, decoded=50)])
def test_a_scheduler_that_started_anew_has_no_rate(anew):
    """Its clock, or a counter, has gone back."""
    history = History()
    history.record(START, reading(10.0, decoded=1_000), local())
    history.record(START + 5, anew, local())
    history.record(START + 10, reading(anew.uptime_s + 5, decoded=100), local())
    columns = history.table(START + 10, 15, 5)["columns"]
    assert columns["decoded_tokens_per_s"] == [None, None, 10.0]
    assert columns["running_requests"] == [0, 0, 0]


def test_percentiles_of_a_long_interval_are_those_of_all_its_requests():
    """99 fast ones in one interval and 3 slow ones in the next: not the mean of two medians."""
    history = History()
    history.record(START, reading(0), local())
    history.record(START + 5, reading(5), local(first=(99, 0, 0, 0)))
    history.record(START + 10, reading(10), local(first=(99, 0, 3, 0)))
    fine = history.table(START + 10, 15, 5)["columns"]["time_to_first_token_p50_s"]
    assert fine == [None, pytest.approx(0.05), pytest.approx(0.3)]
    columns = history.table(START + 10, 15, 15)["columns"]
    assert columns["time_to_first_token_p50_s"] == [pytest.approx(0.1 * 51 / 99, abs=1e-5)]
    assert columns["time_to_first_token_p95_s"] == [pytest.approx(0.1 * 96.9 / 99, abs=1e-5)]
    assert columns["inter_token_p50_s"] == [None]


def test_the_very_first_request_counts():
    """Prometheus names no buckets before it."""
    history = History()
    none = Histogram((), ())
    history.record(START, reading(0), Local(0, dict.fromkeys(LATENCIES, none)))
    history.record(START + 5, reading(5), local(first=(0, 1, 0, 0)))
    columns = history.table(START + 5, 10, 5)["columns"]
    assert columns["time_to_first_token_p50_s"] == [None, pytest.approx(0.15)]


def test_a_percentile_as_prometheus_interpolates():
    assert percentile(BOUNDS, {}, 50) is None
    assert percentile(BOUNDS, {0: 10}, 50) == pytest.approx(0.05)
    assert percentile(BOUNDS, {1: 4, 2: 4}, 50) == pytest.approx(0.2)
    assert percentile(BOUNDS, {1: 4, 2: 4}, 75) == pytest.approx(0.3)
    assert percentile(BOUNDS, {3: 5}, 95) == 0.4  # no upper bound


def test_what_is_not_measured_is_absent_by_name():
    history = History()
    history.record(START, reading(0), Local(missing=dict.fromkeys(LATENCIES, "needs X")))
    table = history.table(START, 5, 5)
    names = {f"{name}_p{p}_s" for name in LATENCIES for p in (50, 95)}
    assert table["missing"] == dict.fromkeys(names, "needs X")
    assert names & set(table["columns"]) == set()


def test_a_day_is_kept_in_bounded_memory():
    history = History()
    for i in range(2 * 24 * 720):  # two days
        history.record(START + 5 * i, reading(5.0 * i, running=i % 12, decoded=50 * i), local())
    assert (len(history._fine.cells), len(history._coarse.cells)) == (720, 1440)
    now = START + 5 * i
    hour = history.table(now, 3600)["columns"]["decoded_tokens_per_s"]
    day = history.table(now, 86400)["columns"]
    assert len(hour) == 180 and set(hour) == {10.0}
    assert len(day["running_requests"]) == 180 and set(day["decoded_tokens_per_s"]) == {10.0}
    assert set(day["running_requests"][:-1]) == {5.5}  # the mean of 0 to 11


@pytest.mark.parametrize(
    ("span_s", "step_s", "words"),
    [
        (600, 7, "step_s=7: expected a multiple of 5"),
        (3601, 5, "step_s=5: expected a multiple of 60"),
        (600, 605, "step_s=605: expected at most 600"),
    ],
)
def test_what_is_not_kept_is_refused(span_s, step_s, words):
    with pytest.raises(SpanError, match=words):
        History().table(START, span_s, step_s)


def test_an_empty_history_is_all_gaps():
    table = History().table(START, 600)
    assert len(table["t"]) == 120 and table["step_s"] == 5 and table["pool_tokens"] is None
    assert all(set(column) == {None} for column in table["columns"].values())
