"""What a budget server sets where the operator left it open, and which flags it refuses."""

from types import SimpleNamespace

import pytest

from sglang_longflow import support
from sglang_longflow.config import LongFlowConfig
from sglang_longflow.errors import UnsupportedSetup

OPEN = dict(
    page_size=None,
    sleep_on_idle=False,
    attention_backend=None,
    prefill_attention_backend=None,
    decode_attention_backend=None,
    disable_cuda_graph=False,
    disable_prefill_cuda_graph=False,
)
REFERENCE = LongFlowConfig(kv_budget=64)
TRITON = LongFlowConfig(kv_budget=64, kv_decode_kernel="triton")


@pytest.fixture(params=[False, True], ids=["cpu", "cuda"])
def on_gpu(request, monkeypatch):
    monkeypatch.setattr(support.torch.cuda, "is_available", lambda: request.param)
    return request.param


@pytest.mark.parametrize("config", [REFERENCE, TRITON], ids=["reference", "triton"])
def test_only_the_fused_kernel_keeps_the_decode_graph(on_gpu, config):
    arguments = SimpleNamespace(**OPEN)
    changed = support.apply_defaults(arguments, config)
    if not on_gpu:
        assert changed == {"page_size": 1, "sleep_on_idle": True}
        return
    graphs = "disable_prefill_cuda_graph" if config is TRITON else "disable_cuda_graph"
    assert changed == {"page_size": 1, "attention_backend": "flashinfer", graphs: True}
    assert arguments.disable_cuda_graph is (config is REFERENCE)


def test_what_the_operator_set_stays(on_gpu):
    chosen = {**OPEN, "page_size": 16, "decode_attention_backend": "fa3", "sleep_on_idle": True}
    arguments = SimpleNamespace(**chosen)
    support.apply_defaults(arguments, TRITON)
    assert arguments.page_size == 16 and arguments.attention_backend is None


@pytest.mark.parametrize(
    ("field", "value", "fix"),
    [
        ("cuda_graph_backend_prefill", "full", "drop --cuda-graph-backend-prefill"),
        ("cuda_graph_backend_prefill", "tc_piecewise", "drop --cuda-graph-backend-prefill"),
        ("cuda_graph_backend_decode", "breakable", "set --cuda-graph-backend-decode full"),
        ("page_size", 16, "set --page-size 1"),
        ("speculative_algorithm", "EAGLE", "drop --speculative-algorithm"),
    ],
)
def test_a_flag_that_does_not_go_with_a_budget_is_named_with_its_fix(field, value, fix):
    assert support.flag_conflicts(SimpleNamespace()) == []
    with pytest.raises(UnsupportedSetup, match=rf"^{field}={value!r}: .*{fix}"):
        support.refuse_flags(SimpleNamespace(**{field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cuda_graph_backend_prefill", "disabled"),
        ("cuda_graph_backend_decode", "full"),
        ("cuda_graph_backend_decode", "disabled"),
        ("page_size", 1),
    ],
)
def test_flags_that_go_with_a_budget_pass(field, value):
    support.refuse_flags(SimpleNamespace(**{field: value}))
