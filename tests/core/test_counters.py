# SPDX-License-Identifier: Apache-2.0
"""The live sums count budgeted rows and nothing else; how many rows run at once."""

import pytest

from sglang_longflow.core.counters import (
    LiveGauges,
    RowStats,
    Stall,
    gauges,
    row_capacity,
    rows_used_ratio,
    unplanned_rows,
)


def test_full_rows_count_nowhere():
    rows = [
        RowStats("a", 500, 64, 64, "longflow"),
        RowStats("b", 10, 10, 64, "longflow"),
        RowStats("c", 9000, 9000, 0, "longflow"),
        RowStats("d", 63, 64, 64, "longflow"),  # a slot was taken for a token not stored yet
    ]
    assert gauges(rows) == LiveGauges(rows_at_budget=2, budgeted_tokens=138, saved_tokens=436)
    assert gauges([]) == LiveGauges(0, 0, 0)


def test_row_capacity_is_what_the_pool_holds_or_the_server_runs():
    assert row_capacity(pool_tokens=1200, kv_budget=96, max_running_requests=64) == 12
    assert row_capacity(pool_tokens=1200, kv_budget=96, max_running_requests=8) == 8
    assert row_capacity(pool_tokens=1200, kv_budget=0, max_running_requests=8) is None
    assert row_capacity(pool_tokens=1299, kv_budget=96) == 13
    assert row_capacity(pool_tokens=1299, kv_budget=0) is None


def test_the_ratio_of_rows_needs_a_capacity():
    assert rows_used_ratio(3, 12) == 0.25
    assert rows_used_ratio(18, 12) == 1.5
    assert rows_used_ratio(3, None) is rows_used_ratio(3, 0) is None


def test_a_stall_lasts_while_requests_wait_and_nothing_runs():
    stall = Stall()
    assert stall.seconds(100.0) == 0
    stall.idle_turn(0, 100.0)
    assert stall.seconds(101.0) == 0  # nothing waits
    for turn in range(30):
        stall.idle_turn(2, 102.0 + turn)
    assert stall.seconds(132.0) == 30
    stall.running()
    assert stall.seconds(132.0) == 0


def test_a_pause_is_no_stall():
    """A paused scheduler has no idle turns: the time before the gap does not count."""
    stall = Stall()
    stall.idle_turn(1, 100.0)
    stall.idle_turn(1, 101.0)
    stall.idle_turn(1, 101.0 + Stall.GAP_S + 0.1)
    assert stall.seconds(101.0 + Stall.GAP_S + 0.1) == 0


def test_a_stall_ends_where_the_queue_empties():
    stall = Stall()
    stall.idle_turn(1, 100.0)
    stall.idle_turn(0, 101.0)
    stall.idle_turn(1, 102.0)
    assert stall.seconds(103.0) == 1


@pytest.mark.parametrize(
    ("planned", "fits", "text"),
    [
        (118, 51, "51 requests fit at the budget, 57 % fewer than kv_planned_rows=118"),
        (118, 106, "10 % fewer"),
        (118, 107, ""),  # the last within a tenth
        (118, 129, ""),
        (118, 130, "130 requests fit at the budget, 10 % more than kv_planned_rows=118"),
        (1, 1, ""),
        (None, 51, ""),
        (118, None, ""),
    ],
)
def test_a_pool_of_another_size_than_planned_is_named(planned, fits, text):
    found = unplanned_rows(planned, fits)
    assert text in found if text else found == ""
    assert not text or "longflow render --gpu" in found
