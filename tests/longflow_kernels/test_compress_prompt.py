# SPDX-License-Identifier: Apache-2.0
"""SnapKV's pick against naive float64 loops."""

import math

import pytest
import torch

from longflow_kernels import prompt_scores, top_positions


def naive(q, k, scaling, cap=0.0, pool=5):
    q, k = q.to(torch.float64), k.to(torch.float64)
    window, heads, _ = q.shape
    group = heads // k.shape[1]
    total = [0.0] * k.shape[0]
    for w in range(window):
        for h in range(heads):
            logits = [float(x) * scaling for x in k[:, h // group] @ q[w, h]]
            if cap > 0:
                logits = [cap * math.tanh(x / cap) for x in logits]
            top = max(logits)
            weights = [math.exp(x - top) for x in logits]
            norm = sum(weights)
            for i, weight in enumerate(weights):
                total[i] += weight / norm
    half = pool // 2
    padded = [0.0] * half + total + [0.0] * half
    return torch.tensor([sum(padded[i : i + pool]) / pool for i in range(len(total))]).double()


def make(window, earlier, heads, kv_heads, head_dim, dtype=torch.float32):
    return (
        torch.randn(window, heads, head_dim).to(dtype),
        torch.randn(earlier, kv_heads, head_dim).to(dtype),
    )


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 2), (6, 1)])
@pytest.mark.parametrize("earlier", [1, 2, 7, 54, 97])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scores_equal_naive_loops(heads, kv_heads, earlier, dtype):
    q, k = make(5, earlier, heads, kv_heads, 64, dtype)
    got = prompt_scores(q, k, 0.125)
    assert got.dtype == torch.float32
    assert got.shape == (earlier,)
    torch.testing.assert_close(got.double(), naive(q, k, 0.125), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("cap", [0.0, 0.5, 30.0])
@pytest.mark.parametrize("pool", [1, 3, 5])
def test_head_sizes_caps_and_pools(head_dim, cap, pool):
    q, k = make(3, 54, 4, 2, head_dim)
    got = prompt_scores(q, k, head_dim**-0.5, cap, pool)
    expected = naive(q, k, head_dim**-0.5, cap, pool)
    torch.testing.assert_close(got.double(), expected, rtol=2e-5, atol=1e-7)


def test_long_prompt_with_a_full_window():
    q, k = make(32, 1000, 4, 2, 64)
    got = prompt_scores(q, k, 0.125).double()
    torch.testing.assert_close(got, naive(q, k, 0.125), rtol=1e-4, atol=1e-6)


def test_a_non_contiguous_window_is_read_right():
    packed = torch.randn(40, 4, 64)
    k = torch.randn(54, 2, 64)
    window = packed.transpose(0, 1).contiguous().transpose(0, 1)[8:40]
    assert not window.is_contiguous()
    torch.testing.assert_close(
        prompt_scores(window, k, 0.1), prompt_scores(packed[8:40].clone(), k, 0.1)
    )


def test_weight_is_conserved_without_the_pool():
    q, k = make(32, 97, 8, 2, 64)
    assert prompt_scores(q, k, 0.1, pool_kernel=1).sum().item() == pytest.approx(32 * 8, rel=1e-5)


@pytest.mark.parametrize("case", range(20))
def test_top_positions_equal_a_naive_sort(case):
    n = [1, 7, 54, 97, 1000][case % 5]
    scores = torch.rand(n)  # no ties
    first = min(case % 4, n)
    count = first + (n - first) * (case % 6) // 5
    got = top_positions(scores, count, first).tolist()
    order = sorted(range(first, n), key=lambda i: -scores[i].item())
    assert got == sorted([*range(first), *order[: count - first]])


def test_top_positions_leave_the_scores_alone():
    scores = torch.rand(9)
    before = scores.clone()
    assert top_positions(scores, 4, 2).dtype == torch.int64
    assert torch.equal(scores, before)


@pytest.mark.parametrize(("count", "first"), [(10, 0), (-1, 0), (2, 3), (0, 1)])
def test_counts_out_of_range_are_rejected_by_name(count, first):
    with pytest.raises(ValueError, match=f"count={count}: expected {first} <= count <= 9"):
        top_positions(torch.rand(9), count, first)


def test_all_and_none_may_be_kept():
    assert top_positions(torch.rand(9), 9).tolist() == list(range(9))
    assert top_positions(torch.rand(9), 0).tolist() == []
    assert top_positions(torch.full((9,), -torch.inf), 3, 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("broken", ["head_dim", "q rank", "k rank"])
def test_shapes_that_do_not_fit_raise(broken):
    q, k = make(5, 54, 4, 2, 64)
    if broken == "head_dim":
        q = q[..., :48]
    elif broken == "q rank":
        q = q[0]
    else:
        k = k[0]
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        prompt_scores(q, k, 0.1)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 3), (1, 2), (6, 4)])
def test_heads_that_do_not_divide_are_rejected(heads, kv_heads):
    q, k = make(5, 54, heads, kv_heads, 64)
    with pytest.raises(ValueError, match=r"num_q_heads"):
        prompt_scores(q, k, 0.1)
