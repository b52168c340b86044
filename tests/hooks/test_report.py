# SPDX-License-Identifier: Apache-2.0
"""Reports on their way to meta_info: one entry a token, the last one is the report of now."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from sglang_longflow.core.contracts import KVBudget, KVRow
from sglang_longflow.errors import BudgetError
from sglang_longflow.hooks import report as hook
from sglang_longflow.hooks.report import LatestReport, _spread
from sglang_longflow.policies import make_policy


def request(output_tokens: int) -> SimpleNamespace:
    row = KVRow(KVBudget(64, make_policy("longflow")))
    return SimpleNamespace(
        longflow_row=row, origin_input_ids=[1] * 10, output_ids_through_stop=[2] * output_tokens
    )


def test_a_slice_is_as_long_as_the_tokens_it_goes_with():
    """SGLang's incremental streams cut what was sent before by tokens (one message of 8, of 5)."""
    req = request(8)
    reports = LatestReport(req)
    sent: list = []
    for start, stop in ((0, 1), (1, 9), (9, 14)):
        req.output_ids_through_stop = [2] * stop
        sent += reports[start:stop]
        meta = {"longflow": sent[start:]}
        assert len(meta["longflow"]) == stop - start
        _spread(meta)
        assert meta["kv_budget"] == 64 and meta["kv_resident_tokens"] == 10 + stop - 1
        assert "longflow" not in meta


def test_a_message_without_new_tokens_has_a_report():
    meta = {"longflow": LatestReport(request(8))[8:8]}
    _spread(meta)
    assert meta["kv_resident_tokens"] == 17


def call(text=None, input_ids=None, sampling_params=None):
    return SimpleNamespace(text=text, input_ids=input_ids, sampling_params=sampling_params or {})


@pytest.mark.parametrize(
    ("obj", "over_http", "refused"),
    [
        (call(text=["a"] * 4096), True, False),
        (call(text=["a"] * 4097), True, True),
        (call(text=["a"] * 100_000), False, False),  # sglang.Engine
        (call(text="a" * 100_000), True, False),
        (call(input_ids=[3] * 100_000), True, False),
        (call(input_ids=[[3]] * 5000), True, True),
        (call(input_ids=[]), True, False),
        (call(text=["a"] * 100, sampling_params={"n": 41}), True, True),
        (call(text=["a"] * 2, sampling_params=[{"n": 3000}, {}]), True, True),
        (call(text=["a"] * 2, sampling_params="x"), True, False),  # refused elsewhere
        (call(), True, False),  # embeddings
    ],
)
def test_a_call_becomes_so_many_requests_and_no_more(obj, over_http, refused):
    with pytest.raises(BudgetError) if refused else nullcontext():
        hook._check_size(obj, over_http=over_http)
