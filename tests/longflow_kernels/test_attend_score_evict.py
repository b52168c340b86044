# SPDX-License-Identifier: Apache-2.0
"""Removal scores against naive float64 loops."""

import math

import pytest
import torch

from longflow_kernels import removal_scores
from longflow_kernels.attend_score_evict.reference import attention_weights

HEADS = [(4, 4), (8, 2), (6, 1), (1, 1)]  # MHA, GQA, MQA, one


def naive(q, k, v, scaling, cap=0.0):
    """|alpha_i * v_i| averaged over query heads and channels, one number at a time."""
    q, k, v = (t.to(torch.float64) for t in (q, k, v))
    rows, heads, _ = q.shape
    group = heads // k.shape[2]
    out = torch.zeros(rows, k.shape[1], dtype=torch.float64)
    for n in range(rows):
        for h in range(heads):
            logits = []
            for i in range(k.shape[1]):
                logit = float(q[n, h] @ k[n, i, h // group]) * scaling
                logits.append(cap * math.tanh(logit / cap) if cap > 0 else logit)
            top = max(logits)
            weights = [math.exp(x - top) for x in logits]
            total = sum(weights)
            for i, w in enumerate(weights):
                alpha = w / total
                out[n, i] += float((alpha * v[n, i, h // group]).abs().sum())
    return out / (heads * v.shape[-1])


def make(rows, slots, heads, kv_heads, head_dim, v_dim=None, dtype=torch.float32):
    q = torch.randn(rows, heads, head_dim).to(dtype)
    k = torch.randn(rows, slots, kv_heads, head_dim).to(dtype)
    v = torch.randn(rows, slots, kv_heads, v_dim or head_dim).to(dtype)
    return q, k, v


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("slots", [1, 7, 54, 97])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scores_equal_naive_loops(heads, kv_heads, slots, dtype):
    q, k, v = make(2, slots, heads, kv_heads, 64, dtype=dtype)
    got = removal_scores(q, k, v, 0.125)
    assert got.dtype == torch.float32
    assert got.shape == (2, slots)
    expected = naive(q, k, v, 0.125)
    torch.testing.assert_close(got.double(), expected, rtol=2e-5, atol=1e-9)
    assert torch.equal(got.argmin(1), expected.argmin(1))


@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("cap", [0.0, 0.5, 30.0])
def test_head_sizes_and_logit_caps(head_dim, cap):
    q, k, v = make(2, 54, 4, 2, head_dim)
    got = removal_scores(q, k, v, head_dim**-0.5, cap)
    expected = naive(q, k, v, head_dim**-0.5, cap)
    torch.testing.assert_close(got.double(), expected, rtol=2e-5, atol=1e-9)


def test_a_cap_changes_the_scores():
    q, k, v = make(1, 54, 4, 2, 64)
    assert not torch.allclose(removal_scores(q, k, v, 1.0), removal_scores(q, k, v, 1.0, 0.5))


def test_long_row_with_large_logits_stays_finite():
    q, k, v = make(1, 1000, 8, 2, 64)
    got = removal_scores(q * 30, k * 30, v, 1.0)
    assert torch.isfinite(got).all()
    assert (got >= 0).all()
    expected = naive(q * 30, k * 30, v, 1.0)
    torch.testing.assert_close(got.double(), expected, rtol=1e-2, atol=1e-7)


def test_half_precision_inputs_are_widened_before_they_are_summed():
    q, k, v = make(1, 97, 4, 2, 128, dtype=torch.float16)
    v = v * 500  # the sum over 128 channels passes 65504
    got = removal_scores(q, k, v, 0.1)
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got.double(), naive(q, k, v, 0.1), rtol=2e-5, atol=1e-9)


def test_values_may_have_another_size_than_keys():
    q, k, v = make(2, 7, 4, 2, 64, v_dim=32)
    torch.testing.assert_close(
        removal_scores(q, k, v, 0.1).double(), naive(q, k, v, 0.1), rtol=2e-5, atol=1e-9
    )


def test_a_slot_without_value_is_worth_nothing():
    q, k, v = make(2, 54, 4, 2, 64)
    v[0, 13] = 0
    v[1, 40] = 0
    got = removal_scores(q, k, v, 0.125)
    assert got.argmin(1).tolist() == [13, 40]
    assert got[0, 13] == 0


def test_sign_of_the_values_does_not_matter():
    q, k, v = make(2, 54, 4, 2, 64)
    assert torch.equal(removal_scores(q, k, v, 0.1), removal_scores(q, k, -v, 0.1))


def test_scores_follow_a_permutation_of_the_slots():
    q, k, v = make(1, 54, 4, 2, 64)
    order = torch.randperm(54)
    got = removal_scores(q, k[:, order], v[:, order], 0.1)
    torch.testing.assert_close(got, removal_scores(q, k, v, 0.1)[:, order])


def test_query_heads_read_the_kv_head_of_their_group():
    q, k, _ = make(1, 9, 4, 2, 64)
    weights = attention_weights(q, k, 0.1)
    assert weights.shape == (1, 2, 2, 9)
    for head in range(4):
        alone = attention_weights(q[:, head : head + 1], k[:, :, head // 2 : head // 2 + 1], 0.1)
        torch.testing.assert_close(weights[:, head // 2, head % 2], alone[:, 0, 0])
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 2))


def test_inputs_are_not_changed():
    tensors = make(2, 7, 4, 2, 64)
    copies = [t.clone() for t in tensors]
    removal_scores(*tensors, 0.1, 5.0)
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 3), (1, 2), (6, 4)])
def test_heads_that_do_not_divide_are_rejected_by_name(heads, kv_heads):
    q, k, v = make(1, 7, heads, kv_heads, 64)
    with pytest.raises(ValueError, match=rf"num_q_heads={heads} .*num_kv_heads={kv_heads}"):
        removal_scores(q, k, v, 0.1)


@pytest.mark.parametrize("broken", ["q rank", "head_dim", "kv rows", "v slots", "k rank"])
def test_shapes_that_do_not_fit_raise(broken):
    q, k, v = make(2, 7, 4, 2, 64)
    if broken == "q rank":
        q = q[0]
    elif broken == "head_dim":
        q = q[..., :32]
    elif broken == "kv rows":
        k = torch.cat([k, k[:1]])
    elif broken == "v slots":
        v = v[:, :6]
    else:
        k = k[:, :, 0]
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        removal_scores(q, k, v, 0.1)
