"""Reports on their way to meta_info: one entry a token, the last one is the report of now."""

from __future__ import annotations

from types import SimpleNamespace

from sglang_longflow.contracts import KVBudget, KVRow
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
