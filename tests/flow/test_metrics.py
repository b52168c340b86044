"""The live sums count budgeted rows and nothing else."""

from sglang_longflow.flow.metrics import LiveGauges, RowStats, gauges


def test_full_rows_count_nowhere():
    rows = [
        RowStats("a", 500, 64, 64, "longflow"),
        RowStats("b", 10, 10, 64, "longflow"),
        RowStats("c", 9000, 9000, 0, "longflow"),
        RowStats("d", 63, 64, 64, "longflow"),  # a slot was taken for a token not stored yet
    ]
    assert gauges(rows) == LiveGauges(rows_at_budget=2, budgeted_tokens=138, saved_tokens=436)
    assert gauges([]) == LiveGauges(0, 0, 0)
