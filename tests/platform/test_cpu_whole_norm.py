# SPDX-License-Identifier: Apache-2.0
"""The norm over all heads at once, against that of Transformers' MiniMax-M2."""

import pytest
import torch

from sglang_longflow.platform.cpu_whole_norm import rms_apply_serial, rms_sumsq_serial

EPS = 1e-6


@pytest.fixture(scope="module")
def tensors():
    torch.manual_seed(0)
    queries, keys = torch.randn(5, 96), torch.randn(5, 32) * 3
    return queries, keys, torch.rand(96) + 0.5, torch.rand(32) + 0.5


@pytest.fixture(scope="module")
def wanted(tensors):
    from transformers.models.minimax_m2.modeling_minimax_m2 import MiniMaxM2RMSNorm

    found = []
    for x, weight in zip(tensors[:2], tensors[2:], strict=True):
        norm = MiniMaxM2RMSNorm(x.shape[1], EPS)
        norm.weight.data.copy_(weight)
        found.append(norm(x).detach())
    return found


def test_one_rank(tensors, wanted):
    queries, keys, *_ = tensors
    got = rms_apply_serial(*tensors, rms_sumsq_serial(queries, keys), eps=EPS)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_two_ranks_add_their_sums_up(tensors, wanted):
    shares = [[x.chunk(2, dim=-1)[rank] for x in tensors] for rank in (0, 1)]
    total = sum(rms_sumsq_serial(*share[:2]) for share in shares)
    got = [rms_apply_serial(*share, total, tp_world=2, eps=EPS) for share in shares]
    for halves, theirs in zip(zip(*got, strict=True), wanted, strict=True):
        torch.testing.assert_close(torch.cat(halves, dim=-1), theirs)


def test_what_comes_out_has_the_dtype_of_what_went_in(tensors):
    queries, keys, *weights = (x.bfloat16() for x in tensors)
    sums = rms_sumsq_serial(queries, keys)
    assert sums.dtype == torch.float32
    assert {x.dtype for x in rms_apply_serial(queries, keys, *weights, sums)} == {torch.bfloat16}
