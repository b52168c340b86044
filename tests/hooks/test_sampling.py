# SPDX-License-Identifier: Apache-2.0
"""Logits that leave no token to draw."""

from types import SimpleNamespace

import pytest
import torch

from sglang_longflow.core import runtime
from sglang_longflow.hooks import sampling
from sglang_longflow.settings.config import LongFlowConfig

INF, NAN = float("inf"), float("nan")


def info(**has):
    names = ("grammars", "acc_additive_penalties", "logit_bias", "penalizer_orchestrator")
    return SimpleNamespace(**{**dict.fromkeys(names), **has})


def after(logits, sampling_info):
    output = SimpleNamespace(next_token_logits=torch.tensor(logits))
    sampling.preprocess_logits(None, None, output, sampling_info)
    return output.next_token_logits


@pytest.mark.parametrize(
    "has",
    [
        {"grammars": [object()]},
        {"acc_additive_penalties": object()},
        {"logit_bias": object()},
        {"penalizer_orchestrator": SimpleNamespace(is_required=True)},
    ],
)
def test_only_rows_without_a_token_get_their_logits_back(monkeypatch, has):
    monkeypatch.setattr(runtime, "_current", runtime.Runtime(LongFlowConfig(kv_budget=64)))
    rows = [[1.0, -INF, 2.0], [-INF] * 3, [0.0, NAN, 1.0], [-INF, -INF, -7.0]]
    found = after(rows, info(**has))
    assert found.tolist() == [[1.0, -INF, 2.0], [0.0] * 3, [0.0] * 3, [-INF, -INF, -7.0]]
    assert torch.isfinite(torch.softmax(found, -1)).all()


def test_plain_requests_and_plain_servers_are_left_alone(monkeypatch):
    monkeypatch.setattr(runtime, "_current", runtime.Runtime(LongFlowConfig(kv_budget=64)))
    not_required = info(penalizer_orchestrator=SimpleNamespace(is_required=False))
    assert after([[-INF, -INF]], not_required).tolist() == [[-INF, -INF]]
    monkeypatch.setattr(runtime, "_current", None)
    assert after([[-INF]], info(grammars=[object()])).tolist() == [[-INF]]


@pytest.mark.sglang
@pytest.mark.parametrize(
    "top_k, top_p, min_p", [(3, 1.0, 0.0), (2**30, 0.9, 0.0), (2**30, 1.0, 0.1)]
)
def test_sglang_itself_still_cannot_draw_from_such_a_row(monkeypatch, top_k, top_p, min_p):
    """The day this turns red, the hook can go: SGLang 0.5.23 mended the plain draw alone."""
    from sglang.srt.layers.sampler import top_k_top_p_min_p_sampling_from_probs_torch

    def draw(logits):
        probs = torch.softmax(logits, -1)
        filled = (torch.full((2,), value) for value in (top_k, top_p, min_p))
        positions = torch.tensor([3, 4])
        return top_k_top_p_min_p_sampling_from_probs_torch(
            probs, *filled, min_p > 0, None, positions
        )

    rows = [[-INF] * 8, [-INF] * 7 + [1.0]]
    with pytest.raises(RuntimeError, match="nan"):
        draw(torch.tensor(rows))
    monkeypatch.setattr(runtime, "_current", runtime.Runtime(LongFlowConfig(kv_budget=64)))
    mended, other = draw(after(rows, info(grammars=[object()]))).tolist()
    assert 0 <= mended < 8
    assert other == 7


@pytest.mark.sglang
def test_sglang_lists_rows_that_asked_for_no_logprobs_like_the_others():
    """We mended this for SGLang 0.5.17, whose scheduler ended at it."""
    from sglang.srt.layers.logprob_processor import LogprobStage, get_token_ids_logprobs_raw

    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]])
    values, ids = get_token_ids_logprobs_raw(
        logprobs, [None, [2, 0]], LogprobStage.DECODE, no_copy_to_cpu=True
    )
    assert [value.tolist() for value in values] == [[], [-6.0, -4.0]]
    assert ids == [[], [2, 0]]
