"""What the scheduler cannot take is answered. Imports SGLang (slow), inside the tests only."""

from types import SimpleNamespace

import pytest

from sglang_longflow import runtime
from sglang_longflow.config import LongFlowConfig
from sglang_longflow.hooks import inbox


@pytest.fixture(autouse=True)
def active(monkeypatch):
    state = runtime.Runtime(LongFlowConfig(kv_budget=64))
    monkeypatch.setattr(runtime, "_current", state)
    return state


def fails(*_):
    raise ValueError("Overflow when unpacking long long")


def test_a_request_that_cannot_be_taken_is_answered_and_leaves_the_queue(active):
    sent = []
    other, mine = SimpleNamespace(rid="other"), SimpleNamespace(rid="mine")
    scheduler = SimpleNamespace(
        waiting_queue=[other, mine],
        ipc_channels=SimpleNamespace(
            send_to_tokenizer=SimpleNamespace(send_output=lambda *a: sent.append(a))
        ),
    )
    inbox.handle_generate_request(fails, scheduler, mine)
    ((abort, asked),) = sent
    assert asked is mine and abort.rid == "mine"
    assert abort.finished_reason["status_code"] == 500
    assert "ValueError: Overflow" in abort.finished_reason["message"]
    assert scheduler.waiting_queue == [other]
    assert active.counters.failed_hooks == 1


def test_a_server_without_a_budget_is_stock(monkeypatch):
    monkeypatch.setattr(runtime, "_current", None)
    for call in (
        lambda: inbox.handle_generate_request(fails, None, None),
        lambda: inbox.dispatch(fails, None, None),
    ):
        with pytest.raises(ValueError, match="Overflow"):
            call()


@pytest.mark.parametrize(
    "name",
    [
        "ClearHiCacheReqInput",
        "FlushCacheReqInput",
        "UpdateWeightFromDiskReqInput",
        "UpdateWeightsFromTensorReqInput",
        "InitWeightsUpdateGroupReqInput",
        "GetWeightsByNameReqInput",
        "ReleaseMemoryOccupationReqInput",
        "GetInternalStateReq",
        "SetInternalStateReq",
        "ProfileReq",
        "ExpertDistributionReq",
        "OpenSessionReqInput",
        "SlowDownReqInput",
        "CheckWeightsReqInput",
    ],
)
def test_an_operators_request_that_fails_is_answered_in_sglangs_words(name):
    request = type(name, (), {})()
    output = inbox.dispatch(fails, None, request)
    assert type(output).__name__ == f"{name.removesuffix('Input').removesuffix('Req')}ReqOutput"
    assert getattr(output, "success", False) is False
    if hasattr(output, "message"):
        assert output.message.startswith(f"{name} failed: ValueError: Overflow")


def test_what_sglang_has_no_answer_for_is_dropped():
    assert inbox.dispatch(fails, None, type("CloseSessionReqInput", (), {})()) is None


def test_what_succeeds_passes_through():
    assert inbox.dispatch(lambda dispatcher, obj: obj + 1, None, 6) == 7
