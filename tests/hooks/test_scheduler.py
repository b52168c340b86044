# SPDX-License-Identifier: Apache-2.0
"""What a scheduler says at its start."""

import os
import signal
from types import SimpleNamespace

import pytest
from sglang.srt.managers.schedule_policy import PrefillAdder as StockAdder

from sglang_longflow.core.runtime import Runtime
from sglang_longflow.errors import ConfigError, HookNotApplied, UnsupportedSetup
from sglang_longflow.hooks import scheduler as hook
from sglang_longflow.hooks import start_check
from sglang_longflow.hooks.admission import BudgetAdder
from sglang_longflow.hooks.server_args import require_checked
from sglang_longflow.settings.config import LongFlowConfig

pytestmark = pytest.mark.sglang


@pytest.mark.parametrize(
    ("budget", "runner", "warns"),
    [
        (100, SimpleNamespace(max_bs=99), True),
        (100, SimpleNamespace(max_bs=100), False),
        (100, SimpleNamespace(), False),  # no CUDA graphs: the eager runner
        (0, SimpleNamespace(max_bs=8), False),
    ],
)
def test_rows_beyond_the_cuda_graphs_are_told(monkeypatch, budget, runner, warns):
    said = []  # not caplog: SGLang configures logging in this process
    monkeypatch.setattr(hook.logger, "warning", lambda text, *args: said.append(text % args))
    model_runner = SimpleNamespace(decode_cuda_graph_runner=runner)
    fake = SimpleNamespace(
        tp_worker=SimpleNamespace(model_runner=model_runner),
        max_total_num_tokens=10_000,
        max_running_requests=8,
        req_to_token_pool=SimpleNamespace(),
    )
    hybrid = SimpleNamespace(mamba_pool="states")  # for eight requests
    few = SimpleNamespace(**{**vars(fake), "req_to_token_pool": hybrid})
    hook._warn_if_graphs_end_early(few, Runtime(LongFlowConfig(kv_budget=budget)))
    assert not said
    hook._warn_if_graphs_end_early(fake, Runtime(LongFlowConfig(kv_budget=budget)))
    text = "100 requests fit at the budget, decode CUDA graphs end at 99: set --cuda-graph-max-bs-d"
    assert (text in "".join(said)) == warns


@pytest.mark.parametrize(("planned", "warns"), [(None, False), (105, False), (118, True)])
def test_a_pool_of_another_size_than_planned_is_told(monkeypatch, planned, warns):
    said = []
    monkeypatch.setattr(hook.logger, "warning", lambda text, *args: said.append(text % args))
    config = LongFlowConfig(kv_budget=100, kv_planned_rows=planned)
    fake = SimpleNamespace(max_total_num_tokens=10_000, req_to_token_pool=SimpleNamespace())
    hook._warn_if_unplanned(fake, Runtime(config))
    text = "longflow: 100 requests fit at the budget, 15 % fewer than kv_planned_rows=118"
    assert len(said) == warns and all(text in line for line in said)


@pytest.mark.parametrize("kind", [ConfigError, UnsupportedSetup, HookNotApplied])
def test_what_an_operator_can_change_ends_the_server_with_one_line(monkeypatch, capsys, kind):
    """SGLang would log a traceback of it, and then end the server in the same way."""
    sent = []
    monkeypatch.setattr(start_check.os, "kill", lambda *to: sent.append(to))

    def activate(server_args):
        raise kind("kv_budget=9: over\n  the pool; lower it")

    monkeypatch.setattr(hook.runtime, "activate", activate)
    with pytest.raises(SystemExit) as end:
        hook.init(None, SimpleNamespace(), SimpleNamespace())
    assert end.value.code == 1 and sent == [(os.getppid(), signal.SIGQUIT)]
    assert capsys.readouterr().err == "longflow: error: kv_budget=9: over the pool; lower it\n"


def test_what_is_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def activate(server_args):
        raise RuntimeError("one")

    monkeypatch.setattr(hook.runtime, "activate", activate)
    with pytest.raises(RuntimeError, match="one"):
        hook.init(None, SimpleNamespace(), SimpleNamespace())


@pytest.mark.parametrize(
    ("adder", "words"),
    [
        (BudgetAdder, ""),
        (type("Theirs", (BudgetAdder,), {}), ""),
        (StockAdder, "sglang.srt.managers.schedule_policy.PrefillAdder admits requests"),
    ],
)
def test_whoever_admits_requests_must_know_budgets(monkeypatch, adder, words):
    monkeypatch.setattr(hook.slots, "require_alloc_for_decode", lambda device: None)
    fake = SimpleNamespace(get_prefill_adder_class=lambda: adder)
    if not words:
        return hook._check_parts(fake, "cpu")
    with pytest.raises(HookNotApplied, match=words):
        hook._check_parts(fake, "cpu")


@pytest.mark.parametrize("left_out", ["", "_longflow_declared", "_longflow_checked"])
def test_settings_that_nobody_judged_make_no_scheduler(left_out):
    config = LongFlowConfig(kv_budget=96)
    marks = {name: 96 for name in ("_longflow_declared", "_longflow_checked") if name != left_out}
    if not left_out:
        return require_checked(SimpleNamespace(**marks), config)
    with pytest.raises(HookNotApplied, match=r"^kv_budget=96: SGLang worked these settings out"):
        require_checked(SimpleNamespace(**marks), config)
    with pytest.raises(HookNotApplied):  # judged for another budget
        require_checked(SimpleNamespace(_longflow_declared=64, _longflow_checked=64), config)
