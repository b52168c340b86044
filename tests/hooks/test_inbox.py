# SPDX-License-Identifier: Apache-2.0
"""What the scheduler cannot take is answered. Imports SGLang (slow), inside the tests only."""

import asyncio
from types import SimpleNamespace

import pytest

from sglang_longflow.core import runtime
from sglang_longflow.errors import BudgetError
from sglang_longflow.hooks import inbox
from sglang_longflow.settings.config import LongFlowConfig
from sglang_longflow.settings.flags import FLAGS


@pytest.fixture(autouse=True)
def active(monkeypatch):
    state = runtime.Runtime(LongFlowConfig(kv_budget=64))
    monkeypatch.setattr(runtime, "_current", state)
    return state


def fails(*_, **__):
    raise ValueError("Overflow when unpacking long long")


@pytest.mark.sglang
def test_a_request_that_cannot_be_taken_is_answered_and_leaves_the_queue(active):
    sent = []
    other, mine = SimpleNamespace(rid="other"), SimpleNamespace(rid="mine")
    scheduler = SimpleNamespace(
        waiting_queue=[other, mine],
        send_abort_output=lambda *a: sent.append(a),
    )
    inbox.handle_generate_request(fails, scheduler, mine, mm_input_error=None)
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
@pytest.mark.sglang
def test_an_operators_request_that_fails_is_answered_in_sglangs_words(name):
    request = type(name, (), {})()
    output = inbox.dispatch(fails, None, request)
    assert type(output).__name__ == f"{name.removesuffix('Input').removesuffix('Req')}ReqOutput"
    assert getattr(output, "success", False) is False
    if hasattr(output, "message"):
        assert output.message.startswith(f"{name} failed: ValueError: Overflow")


@pytest.mark.sglang
def test_what_sglang_has_no_answer_for_is_dropped():
    assert inbox.dispatch(fails, None, type("CloseSessionReqInput", (), {})()) is None


def test_an_answer_that_the_http_process_cannot_take_is_dropped_once_it_has_a_budget(monkeypatch):
    monkeypatch.setattr(runtime, "_current", None)
    manager = SimpleNamespace(_result_dispatcher=SimpleNamespace())
    with pytest.raises(ValueError, match="Overflow"):
        inbox.dispatch(fails, manager._result_dispatcher, object())
    inbox.guard_answers(manager)
    assert inbox.dispatch(fails, manager._result_dispatcher, object()) is None
    with pytest.raises(ValueError, match="Overflow"):
        inbox.dispatch(fails, SimpleNamespace(), object())  # of another process's kind


def test_weights_are_updated_one_after_the_other():
    running, most = 0, 0

    async def original(manager, obj):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return obj

    settings = {flag.name: flag.default for flag in FLAGS} | {"device": "cpu"}

    async def several(kv_budget):
        manager = SimpleNamespace(
            server_args=SimpleNamespace(
                **settings,
            )
        )
        manager.server_args.kv_budget = kv_budget
        jobs = (inbox.one_weight_update(original, manager, i) for i in range(3))
        return await asyncio.gather(*jobs)

    assert asyncio.run(several(64)) == [0, 1, 2] and most == 1
    assert asyncio.run(several(None)) == [0, 1, 2] and most == 3


@pytest.mark.parametrize(
    ("mode", "paused", "resumes"),
    [
        ("abort", True, True),
        ("abort", False, False),
        ("retract", True, False),
    ],
)
@pytest.mark.sglang
def test_a_pause_with_abort_lets_a_paused_scheduler_go_on(mode, paused, resumes):
    sent = []

    async def dispatch(obj):
        sent.append(type(obj).__name__)

    async def original(manager, obj):
        return "paused"

    settings = {flag.name: flag.default for flag in FLAGS} | {"device": "cpu", "kv_budget": 64}
    manager = SimpleNamespace(
        server_args=SimpleNamespace(**settings),
        is_pause=paused,
        _async_dispatch_to_scheduler=dispatch,
    )
    obj = SimpleNamespace(mode=mode)
    assert asyncio.run(inbox.pause_generation(original, manager, obj)) == "paused"
    assert sent == (["ContinueGenerationReqInput"] if resumes else [])


@pytest.mark.parametrize("kv_budget", [64, None])
def test_metrics_of_a_request_end_nothing_but_on_a_plain_server(kv_budget):
    settings = {flag.name: flag.default for flag in FLAGS} | {"device": "cpu"}
    manager = SimpleNamespace(server_args=SimpleNamespace(**settings | {"kv_budget": kv_budget}))
    if kv_budget:
        manager._result_dispatcher = SimpleNamespace()
        inbox.guard_answers(manager)  # as its first request does
        inbox.collect_metrics(fails, manager, None, None, 0)
    else:
        with pytest.raises(ValueError, match="Overflow"):
            inbox.collect_metrics(fails, manager, None, None, 0)


def tokenized(**has):
    names = ("input_embeds", "positional_embed_overrides", "token_indices_to_pool")
    return SimpleNamespace(**{**dict.fromkeys(names), "input_ids": [1, 2, 3], **has})


@pytest.mark.parametrize(
    ("has", "dtype", "says"),
    [
        (
            {"input_embeds": [[0.1, 0.2]]},
            "torch.float32",
            "in bfloat16, and this server in float32",
        ),
        ({"input_embeds": [[0.1, 0.2, 0.3]]}, "torch.bfloat16", "rows of 2 numbers"),
        ({"token_indices_to_pool": [0, 3]}, "torch.bfloat16", "expected 0 to 2"),
        ({"positional_embed_overrides": "x"}, "torch.bfloat16", "sglang.Engine alone"),
        ({"positional_embed_overrides": {"embeds": [[0.0]]}}, "torch.bfloat16", "Engine alone"),
    ],
)
@pytest.mark.sglang
def test_what_would_become_tensors_that_no_model_takes(has, dtype, says):
    model = SimpleNamespace(dtype=dtype, hidden_size=2)
    with pytest.raises(BudgetError, match=says):
        inbox._check_what_becomes_tensors(tokenized(**has), model)


@pytest.mark.sglang
def test_embeddings_that_fit_pass():
    model = SimpleNamespace(dtype="torch.bfloat16", hidden_size=2)
    inbox._check_what_becomes_tensors(tokenized(input_embeds=[[0.1, 0.2]]), model)


@pytest.mark.parametrize("text", ["a", '{"callable": "00"}', "{}", "[]", '{"callable": 5}'])
@pytest.mark.sglang
def test_processors_that_cannot_be_loaded(text):
    with pytest.raises(BudgetError, match="cannot be loaded"):
        inbox._check_processor(text)


@pytest.mark.sglang
def test_a_processor_that_can():
    from sglang.srt.sampling.custom_logit_processor import DisallowedTokensLogitsProcessor

    inbox._check_processor(DisallowedTokensLogitsProcessor.to_str())
    inbox._check_processor(None)


def test_what_succeeds_passes_through():
    assert inbox.dispatch(lambda dispatcher, obj: obj + 1, None, 6) == 7
