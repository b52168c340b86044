# SPDX-License-Identifier: Apache-2.0
"""Reports on their way to meta_info: one entry a token, the last one is the report of now."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import orjson
import pytest

from sglang_longflow.core.contracts import KVBudget, KVRow
from sglang_longflow.errors import BudgetError
from sglang_longflow.hooks import report as hook
from sglang_longflow.hooks.report import LatestReport, _spread, _with_numbers
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


def test_what_sglang_gathers_for_a_stream_does_not_grow():
    """It copies the list for each chunk; what it adds to a chunk without a report is the last."""
    req = request(1)
    reports, gathered = LatestReport(req), []
    for start, stop in ((0, 1), (1, 9), (9, 14)):
        req.output_ids_through_stop = [2] * stop
        gathered += reports[start:stop]
        _spread({"longflow": gathered})
        assert len(gathered) == 1
    aborted = {"longflow": list(gathered)}
    _spread(aborted)
    assert aborted["kv_resident_tokens"] == 10 + 14 - 1


def test_a_message_without_new_tokens_has_a_report():
    meta = {"longflow": LatestReport(request(8))[8:8]}
    _spread(meta)
    assert meta["kv_resident_tokens"] == 17


def call(sampling_params=None, **prompts):
    given = dict(text=None, input_ids=None, input_embeds=None) | prompts
    return SimpleNamespace(**given, sampling_params=sampling_params or {})


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
        (call(input_embeds=[[0.5, 0.5]] * 5000), True, False),
        (call(input_embeds=[[[0.5, 0.5]]] * 5000), True, True),
        (call(input_embeds=[[]] * 4000), True, False),  # refused elsewhere
    ],
)
def test_a_call_becomes_so_many_requests_and_no_more(obj, over_http, refused):
    with pytest.raises(BudgetError) if refused else nullcontext():
        hook._check_size(obj, over_http=over_http)


REPORTS = {
    index: {"id": "r", "kv_budget": 64, "kv_resident_tokens": 60 + index, "kv_policy": "longflow"}
    for index in (0, 1)
}


def event(choices: list, usage: dict | None, content: str = "") -> str:
    made = [{"index": index, "delta": {"content": content}} for index in choices]
    return f"data: {orjson.dumps({'choices': made, 'usage': usage}).decode()}\n\n"


@pytest.mark.parametrize(
    ("choices", "resident"), [([0], 60), ([1], 61), ([], [60, 61])], ids=["one", "other", "end"]
)
def test_an_event_with_a_usage_has_the_numbers_of_its_choices(choices, resident):
    told = _with_numbers(event(choices, {"total_tokens": 3}), REPORTS)
    assert told.startswith("data: {") and told.endswith("}\n\n")
    metadata = orjson.loads(told[6:])["metadata"]
    assert metadata["kv_resident_tokens"] == resident
    assert set(metadata) == {"kv_budget", "kv_resident_tokens"}


@pytest.mark.parametrize(
    ("text", "reports"),
    [
        (event([0], None, '"usage":{'), REPORTS),  # a text that talks of it
        (event([0], {"total_tokens": 3}), {}),  # a server without a budget
        (event([0], {"total_tokens": 3}), {0: {"id": "r"}}),
        ("data: [DONE]\n\n", REPORTS),
    ],
)
def test_other_events_pass_as_they_are(text, reports):
    assert _with_numbers(text, reports) is text
