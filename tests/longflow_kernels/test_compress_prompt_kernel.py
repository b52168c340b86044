"""The prompt-cut kernels against the plain-PyTorch scores, in Triton's interpreter."""

import pytest
import torch
from decode_case import INTERPRETED

from longflow_kernels import prompt_scores
from longflow_kernels.compress_prompt import op
from longflow_kernels.compress_prompt.op import paged_prompt_scores

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="the GPU runs test_kernels_gpu.py")


def make(window, earlier, heads, kv_heads, head_dim, dtype=torch.float32, cache_dtype=None):
    """(queries, cache with poison where no key lies, slots of the keys in order)."""
    q = torch.randn(window, heads, head_dim).to(dtype)
    cache = torch.full((earlier + 50, kv_heads, head_dim), float("nan"))
    slots = torch.randperm(earlier + 50)[:earlier].to(torch.int32)
    cache[slots.long()] = torch.randn(earlier, kv_heads, head_dim)
    return q, cache.to(cache_dtype or dtype), slots


def assert_same(q, cache, slots, scaling, *, rtol=2e-5, k_scale=1.0, **arguments):
    got = paged_prompt_scores(q, cache, slots, scaling, k_scale=k_scale, **arguments)
    keys = cache[slots.long()].double() * k_scale
    expected = prompt_scores(q.double(), keys, scaling, **arguments)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected.float(), rtol=rtol, atol=1e-6)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2), (7, 1)])
@pytest.mark.parametrize("earlier", [1, 54, 200])
def test_heads_and_lengths(heads, kv_heads, earlier):
    assert_same(*make(5, earlier, heads, kv_heads, 64), 0.125)


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_head_sizes_and_dtypes(head_dim, dtype):
    assert_same(*make(3, 70, 4, 2, head_dim, dtype), head_dim**-0.5)


@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_logit_cap(cap):
    assert_same(*make(3, 70, 4, 2, 64), 1.0, logit_cap=cap, rtol=1e-4)


def test_fp8_keys_with_a_scale():
    q, cache, slots = make(4, 90, 4, 2, 64, cache_dtype=torch.float8_e4m3fn)
    assert_same(q, cache, slots, 0.125, k_scale=0.5)


def test_a_full_window_and_many_chunks(monkeypatch):
    monkeypatch.setattr(op, "MAX_CHUNKS", 3)
    assert_same(*make(32, 430, 4, 2, 64), 0.125)


def test_large_logits_stay_finite():
    q, cache, slots = make(3, 70, 4, 2, 64)
    assert_same(q * 60, cache, slots, 1.0, rtol=1e-2)


def test_a_view_of_the_batch_queries():
    q, cache, slots = make(40, 70, 4, 2, 64)
    packed = q.view(40, -1)
    assert_same(packed[7:12].view(5, 4, 64), cache, slots, 0.125)


def test_what_the_kernels_do_not_take_is_refused_by_name():
    q, cache, slots = make(3, 70, 4, 2, 64)
    with pytest.raises(ValueError, match="num_q_heads=3 is not a multiple of num_kv_heads=2"):
        paged_prompt_scores(q[:, :3], cache, slots, 1.0)
    with pytest.raises(ValueError, match="head_dim=32"):
        paged_prompt_scores(q[..., :32], cache, slots, 1.0)
    with pytest.raises(ValueError, match=r"k_cache is torch\.bfloat16: expected torch\.float32"):
        paged_prompt_scores(q, cache.bfloat16(), slots, 1.0)
    with pytest.raises(ValueError, match="contiguous within a token"):
        paged_prompt_scores(q.transpose(0, 1).contiguous().transpose(0, 1), cache, slots, 1.0)
