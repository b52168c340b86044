# SPDX-License-Identifier: Apache-2.0
"""What a failure of a hook costs: the request or the report, never the scheduler."""

from types import SimpleNamespace

import pytest

from sglang_longflow.core import runtime
from sglang_longflow.core.contracts import KVBudget, KVRow
from sglang_longflow.hooks import guard
from sglang_longflow.hooks.hook import Fails
from sglang_longflow.hooks.manifest import MANIFEST
from sglang_longflow.policies import make_policy
from sglang_longflow.settings.config import LongFlowConfig


class Request:
    def __init__(self, *, has_slots=False):
        self.rid = "r"
        self.kv = SimpleNamespace(holds_kv=has_slots)
        self.to_finish = self.customized_info = None
        self.sampling_params = SimpleNamespace(max_new_tokens=900, min_new_tokens=5)
        self.longflow_row = KVRow(KVBudget(64, make_policy("longflow")))

    def finished(self):
        return False


@pytest.fixture(autouse=True)
def active(monkeypatch):
    state = runtime.Runtime(LongFlowConfig(kv_budget=64))
    monkeypatch.setattr(runtime, "_current", state)
    return state


def wrap(handler, kind, fails=Fails.REQUEST, blamed=0):
    return guard.guarded(handler, kind, fails, blamed)


@pytest.mark.sglang
def test_a_failure_before_the_original_leaves_it_to_the_original(active):
    def handler(original, req, number):
        raise KeyError("kv")

    req = Request()
    assert wrap(handler, "around")(lambda req, number: number + 1, req, 6) == 7
    assert req.to_finish.status_code == 500
    assert req.to_finish.message == "longflow: test_guard:handler failed: KeyError: 'kv'"
    assert active.counters.failed_hooks == 1


@pytest.mark.sglang
def test_a_failure_after_the_original_keeps_its_result_and_calls_it_once():
    calls = []

    def handler(original, req):
        original(req)
        raise ValueError

    def original(req):
        calls.append(req)
        return "stock"

    req = Request()
    assert wrap(handler, "around")(original, req) == "stock"
    assert calls == [req]
    assert req.to_finish is not None


def test_an_error_of_the_original_passes_through():
    error = RuntimeError("Out of memory")

    def handler(original, req):
        return original(req)

    def original(req):
        raise error

    req = Request()
    with pytest.raises(RuntimeError) as caught:
        wrap(handler, "around")(original, req)
    assert caught.value is error and req.to_finish is None


@pytest.mark.sglang
def test_nested_calls_of_one_hook_do_not_share_results():
    def handler(original, req, depth):
        if depth:
            return original(req, depth)
        raise ValueError

    guarded = wrap(handler, "around")
    found = []

    def original(req, depth):
        if depth:
            found.append(guarded(original, req, depth - 1))
        return depth

    assert guarded(original, Request(), 2) == 2
    assert found[-1] == 1


@pytest.mark.parametrize("kind", ["before", "after"])
@pytest.mark.sglang
def test_beside_the_original_its_own_result_stands(kind):
    def handler(*args):
        raise TypeError

    req = Request()
    arguments = (req, 1) if kind == "before" else ("result", req, 1)
    assert wrap(handler, kind)(*arguments) is None  # SGLang: no change
    assert req.to_finish is not None


@pytest.mark.parametrize("has_slots", [False, True])
@pytest.mark.sglang
def test_a_request_without_slots_is_let_go(has_slots):
    req = Request(has_slots=has_slots)
    guard.end_request(req, "no")
    assert req.to_finish.message == "no"
    assert req.sampling_params.max_new_tokens == (900 if has_slots else 1)
    # A row with slots stays managed: they must be counted as what they are.
    assert (req.longflow_row is None) is not has_slots


def test_a_watcher_only_loses_its_report(active):
    def handler(original, scheduler):
        raise AttributeError

    assert (
        wrap(handler, "around", Fails.WATCH, None)(lambda scheduler: "stock", object()) == "stock"
    )
    assert active.counters.failed_hooks == 0


def test_metrics_that_cannot_be_written_are_no_reason_to_end(active):
    from sglang_longflow.hooks import metrics

    class FullDisk:
        is_due = True

        def update(self, state, rows):
            raise OSError(28, "No space left on device")

    active.exporter = FullDisk()
    metrics.observe_batch(active, SimpleNamespace(reqs=[]))
    assert active.counters.failed_hooks == 0


@pytest.mark.parametrize("fails", [Fails.START, Fails.ANSWER])
def test_a_start_is_not_saved(fails):
    def handler():
        raise ValueError

    assert wrap(handler, "before", fails, None) is handler


def test_every_hook_that_is_given_one_request_blames_it():
    for hook in MANIFEST:
        takes_one = "req" in hook.parameters or ".Req." in hook.target
        assert (hook.fails is Fails.REQUEST) == takes_one, hook.target
        assert bool(hook.blames) == takes_one
