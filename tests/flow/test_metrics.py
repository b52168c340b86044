"""The live sums count budgeted rows and nothing else; how many rows run at once."""

from sglang_longflow.flow.metrics import LiveGauges, RowStats, gauges, row_capacity


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
