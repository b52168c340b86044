# SPDX-License-Identifier: Apache-2.0
"""A request's first steps in both processes. Imports SGLang (slow), inside the tests only."""

from array import array
from functools import partial
from types import SimpleNamespace

import pytest

from sglang_longflow.core import runtime
from sglang_longflow.core.contracts import KVBudget, KVRow
from sglang_longflow.errors import BudgetError
from sglang_longflow.hooks import request
from sglang_longflow.policies import make_policy
from sglang_longflow.settings.config import LongFlowConfig
from sglang_longflow.settings.flags import FLAGS

POOL, CONTEXT = 400, 1000


@pytest.fixture(autouse=True)
def active(monkeypatch):
    config = LongFlowConfig(kv_budget=48, kv_budget_allow_full=True)
    state = runtime.Runtime(config)
    monkeypatch.setattr(runtime, "_current", state)
    return state


def scheduler(sent=None):
    from sglang.srt.mem_cache.allocator.base import BaseTokenToKVPoolAllocator

    allocator = SimpleNamespace(page_size=1)
    allocator.max_new_tokens_for_memory = partial(
        BaseTokenToKVPoolAllocator.max_new_tokens_for_memory, allocator
    )
    return SimpleNamespace(
        max_new_tokens_limit=None,
        max_req_len=min(CONTEXT, POOL) - 1,
        max_total_num_tokens=POOL,
        page_size=1,
        kv_shard_widening=1,
        token_to_kv_pool_allocator=allocator,
        sliding_window_size=None,
        chunked_prefill_size=None,
        server_args=SimpleNamespace(served_model_name="m"),
        model_config=SimpleNamespace(context_len=CONTEXT),
        send_abort_output=lambda *a: sent.append(a),
        _release_aborted_request=lambda req: setattr(req, "is_released", True),
    )


class Request:
    def __init__(self, prompt=20, **sampling):
        self.rid, self.to_finish = "r", None
        self.is_retracted = self.is_released = False
        self.origin_input_ids, self.output_ids = array("q", [1] * prompt), array("q")
        defaults = dict(max_new_tokens=100, min_new_tokens=0, custom_params=None)
        self.sampling_params = SimpleNamespace(**{**defaults, **sampling})
        self.time_stats = SimpleNamespace(trace_ctx=SimpleNamespace(abort=lambda **_: None))

    def set_finish_with_abort(self, message):
        self.to_finish = message


def first_step(req):
    import inspect

    from sglang.srt.managers.scheduler import Scheduler

    stock = inspect.unwrap(Scheduler.init_req_max_new_tokens)
    request.init_req_max_new_tokens(stock, scheduler(), req)
    return req


@pytest.mark.sglang
def test_min_new_tokens_is_not_cut_to_the_pool():
    req = first_step(Request(max_new_tokens=900, min_new_tokens=800))
    assert req.sampling_params.max_new_tokens == 900 > POOL
    assert req.sampling_params.min_new_tokens == 800


@pytest.mark.sglang
def test_min_new_tokens_never_exceeds_max_new_tokens():
    req = first_step(Request(max_new_tokens=None, min_new_tokens=5000))
    assert req.sampling_params.min_new_tokens == req.sampling_params.max_new_tokens == 978


@pytest.mark.sglang
def test_full_kv_keeps_sglangs_bound():
    req = first_step(
        Request(max_new_tokens=900, min_new_tokens=800, custom_params={"kv_budget": 0})
    )
    assert req.sampling_params.max_new_tokens == req.sampling_params.min_new_tokens < POOL


@pytest.mark.parametrize("custom_params", [[{"kv_budget": 48}], "48", 48, True])
@pytest.mark.sglang
def test_custom_params_that_are_no_object_end_the_request_alone(custom_params):
    req = first_step(Request(custom_params=custom_params))
    assert req.to_finish.startswith(f"custom_params={custom_params!r}: expected an object")
    assert request.row_of(req) is None


@pytest.mark.sglang
def test_the_request_that_sglang_puts_among_custom_params_is_not_ours():
    req = Request(custom_params={"kv_budget": 50})
    req.sampling_params.custom_params["__req__"] = req
    assert request.row_of(first_step(req)).budget.tokens == 50


@pytest.mark.parametrize(
    ("prompt", "output", "ends"), [(20, 378, False), (20, 379, True), (20, 800, True)]
)
@pytest.mark.sglang
def test_a_retracted_row_waits_only_where_the_pool_can_prefill_it(prompt, output, ends):
    sent, queued = [], []
    req = Request(prompt)
    req.output_ids, req.is_retracted = array("q", [1] * output), True
    req.longflow_row = KVRow(KVBudget(48, make_policy("longflow")))
    request.add_request_to_queue(
        lambda self, req, is_retracted: queued.append(req), scheduler(sent), req
    )
    assert bool(sent) is ends and bool(queued) is not ends
    assert req.is_released is ends
    if ends:
        ((abort, _),) = sent
        assert abort.finished_reason["status_code"] == 503
        assert "pool of 400" in abort.finished_reason["message"]


def validate(obj, input_ids=(1, 2, 3), takes_media=False, **flags):
    settings = {flag.name: flag.default for flag in FLAGS} | {"device": "cpu"} | flags
    manager = SimpleNamespace(
        server_args=SimpleNamespace(served_model_name="m", **settings),
        model_config=SimpleNamespace(
            vocab_size=512, context_len=CONTEXT, is_multimodal=takes_media
        ),
    )
    request.validate_one_request(manager, obj, list(input_ids))


def body(**sampling):
    return SimpleNamespace(
        sampling_params=sampling, session_params=None, contains_mm_input=lambda: False
    )


@pytest.mark.parametrize("budget", [48, 0])
@pytest.mark.parametrize("media", ["image_data", "video_data", "audio_data"])
@pytest.mark.sglang
def test_what_a_server_of_text_would_not_look_at_is_refused(media, budget):
    """SGLang drops it in silence, also of a request with full KV."""
    from sglang.srt.managers.io_struct import GenerateReqInput

    def ask(value, **how):
        others = {"image_data": [None], "audio_data": []}  # of no image and of no audio
        obj = GenerateReqInput(
            input_ids=[1, 2, 3],
            sampling_params={"custom_params": {"kv_budget": budget}},
            **{**others, media: value},
        )
        validate(obj, kv_budget=48, kv_budget_allow_full=True, **how)

    for nothing in (None, [], [None]):
        ask(nothing)
    for value in ("", "data:,", ["data:,"], [None, "data:,"]):
        with pytest.raises(BudgetError, match=rf"^{media}: this server takes text alone") as e:
            ask(value)
        assert e.value.reason == "media"
        ask(value, takes_media=True)


def test_stop_tokens_that_no_answer_can_stop_at_are_left_out():
    obj = body(stop_token_ids=[3, 99999999, -1])
    kept = obj.sampling_params
    validate(obj, kv_budget=48)
    assert obj.sampling_params["stop_token_ids"] == [3]
    assert kept["stop_token_ids"] == [3, 99999999, -1]  # several requests may share it


@pytest.mark.parametrize("sampling", [[{"max_new_tokens": 3}], "fast", 7])
def test_sampling_parameters_that_are_no_object_are_refused(sampling):
    with pytest.raises(BudgetError, match=r"sampling_params=.*: expected an object"):
        validate(SimpleNamespace(sampling_params=sampling), kv_budget=48)


def test_a_server_without_a_budget_leaves_all_that_to_sglang():
    for obj in (
        body(custom_params=[1], stop_token_ids=[10**9]),
        SimpleNamespace(sampling_params=7),
    ):
        validate(obj, input_ids=[10**9])
    with pytest.raises(BudgetError, match="started without --kv-budget"):
        validate(body(custom_params={"kv_budget": 48}))


def test_a_budget_over_the_context_is_refused():
    """Where full KV is allowed no maximum stops it, and no row of it would ever overwrite."""
    flags = {"kv_budget": 48, "kv_budget_allow_full": True}
    validate(body(custom_params={"kv_budget": CONTEXT}), **flags)
    with pytest.raises(
        BudgetError, match=rf"^kv_budget={CONTEXT + 1}: over .* of {CONTEXT} tok"
    ) as e:
        validate(body(custom_params={"kv_budget": CONTEXT + 1}), **flags)
    assert e.value.reason == "above_context"


@pytest.mark.parametrize("tokens", ["8", [], 3.7, True])
def test_a_length_that_cannot_be_added_to_the_prompts_is_refused(tokens):
    with pytest.raises(BudgetError, match=r"max_new_tokens=.*: expected an integer"):
        validate(body(max_new_tokens=tokens), kv_budget=48)
