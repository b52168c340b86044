# SPDX-License-Identifier: Apache-2.0
"""What a request reports adds up to the K/V it stored, whatever happened to it."""

import pytest

from sglang_longflow.core.contracts import KVBudget, KVRow
from sglang_longflow.core.report import report
from sglang_longflow.policies import make_policy

POLICY = make_policy("streaming")


def row_after(prompt, budget, launched):
    """A row after `launched` decode steps, counted as `hooks.slots.alloc_for_decode` does."""
    row = KVRow(KVBudget(budget, POLICY))
    kv_len = prompt
    if row.budget.must_cut(prompt):
        row.cut_tokens = prompt - (budget - 1)  # set by prefill, before anything is decoded
        kv_len = budget - 1
    for _ in range(launched):
        if budget and kv_len == budget:
            row.overwritten_tokens += 1
        else:
            kv_len += 1
    return row, kv_len


@pytest.mark.parametrize("budget", [0, 2, 8, 64])
@pytest.mark.parametrize("prompt", [1, 7, 8, 9, 62, 63, 64, 65, 200])
def test_resident_cut_and_overwritten_are_all_that_was_stored(budget, prompt):
    for outputs in [*range(12), 55, 56, 57, 58, 63, 64, 65, 130]:
        steps = max(outputs - 1, 0)
        for extra in (0, 1):  # overlap launches one step beyond the end
            row, kv_len = row_after(prompt, budget, steps + extra)
            got = report(row, prompt, outputs)
            stored = prompt + steps
            total = got.kv_resident_tokens + got.kv_cut_tokens + got.kv_overwritten_tokens
            assert total == stored
            assert min(got.kv_resident_tokens, got.kv_cut_tokens, got.kv_overwritten_tokens) >= 0
            if budget:
                assert got.kv_resident_tokens <= budget
            if not extra:
                assert got.kv_resident_tokens == kv_len
                assert got.kv_overwritten_tokens == row.overwritten_tokens
            assert (got.kv_budget, got.kv_policy) == (budget, "streaming")


def test_full_kv_reports_no_loss():
    got = report(KVRow(KVBudget(0, POLICY)), 1000, 500)
    assert (got.kv_resident_tokens, got.kv_cut_tokens, got.kv_overwritten_tokens) == (1499, 0, 0)


@pytest.mark.parametrize(
    ("outputs", "resident", "overwritten"),
    [(0, 10, 0), (1, 10, 0), (2, 11, 0), (11, 20, 0), (12, 20, 1), (31, 20, 20)],
)
def test_uncut_row_by_hand(outputs, resident, overwritten):
    row, _ = row_after(10, 20, max(outputs - 1, 0))
    got = report(row, 10, outputs)
    assert (got.kv_resident_tokens, got.kv_overwritten_tokens) == (resident, overwritten)


@pytest.mark.parametrize(
    ("outputs", "resident", "overwritten"), [(1, 19, 0), (2, 20, 0), (3, 20, 1), (21, 20, 19)]
)
def test_cut_row_by_hand(outputs, resident, overwritten):
    row, _ = row_after(100, 20, outputs - 1)
    got = report(row, 100, outputs)
    assert got.kv_cut_tokens == 81
    assert (got.kv_resident_tokens, got.kv_overwritten_tokens) == (resident, overwritten)


def test_the_step_beyond_the_end_is_not_reported():
    row, _ = row_after(10, 20, 12)
    assert row.overwritten_tokens == 2
    assert report(row, 10, 12).kv_overwritten_tokens == 1


def test_retracted_row_starts_over():
    row, _ = row_after(100, 20, 40)
    row.owned = True
    row.reset()
    assert row == KVRow(row.budget)
