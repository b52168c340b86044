# SPDX-License-Identifier: Apache-2.0
"""The prompt-cut kernels against the plain-PyTorch scores, in Triton's interpreter."""

import pytest
import torch

from decode_case import INTERPRETED
from longflow_kernels import prompt_mass
from longflow_kernels.compress_prompt import op
from longflow_kernels.compress_prompt.op import Prompt, pack_prompts, paged_prompt_mass

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not INTERPRETED, reason="the GPU runs test_kernels_gpu.py"),
]


def make(window, earlier, heads, kv_heads, head_dim, dtype=torch.float32, cache_dtype=None):
    """(queries, cache with poison where no key lies, slots of the keys in order)."""
    q = torch.randn(window, heads, head_dim).to(dtype)
    cache = torch.full((earlier + 50, kv_heads, head_dim), float("nan"))
    slots = torch.randperm(earlier + 50)[:earlier].to(torch.int32)
    cache[slots.long()] = torch.randn(earlier, kv_heads, head_dim)
    return q, cache.to(cache_dtype or dtype), slots


def assert_same(q, cache, slots, scaling, *, rtol=2e-5, k_scale=1.0, **arguments):
    prompts = pack_prompts([Prompt(0, len(slots), 0)], "cpu")
    got = paged_prompt_mass(
        q, len(q), cache, slots[None], prompts, scaling, k_scale=k_scale, **arguments
    )
    keys = cache[slots.long()].double() * k_scale
    expected = prompt_mass(q.double(), keys, scaling, **arguments)
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


@pytest.mark.parametrize("lengths", [[1], [70, 1, 200], [3, 64, 65, 129, 2]])
def test_prompts_of_a_batch_go_together(lengths, monkeypatch):
    """Each at its place, in rows of a table in any order, beside queries that are no window's."""
    monkeypatch.setattr(op, "MAX_CHUNKS", 2)
    window, heads, kv_heads, head_dim = 5, 6, 2, 64
    rows = torch.randperm(len(lengths) + 2)[: len(lengths)].tolist()
    taken = torch.randperm(sum(lengths) + 9)[: sum(lengths)].to(torch.int32)
    cache = torch.full((sum(lengths) + 9, kv_heads, head_dim), float("nan"))
    cache[taken.long()] = torch.randn(sum(lengths), kv_heads, head_dim)
    table = torch.full((len(lengths) + 2, max(lengths) + 3), 1 << 30, dtype=torch.int32)
    slots = taken.split(lengths)
    for row, of_prompt in zip(rows, slots, strict=True):
        table[row, : len(of_prompt)] = of_prompt
    q = torch.full((12 * len(lengths), heads, head_dim), float("nan"))
    prompts = [
        Prompt(row, n, 12 * i + 4) for i, (row, n) in enumerate(zip(rows, lengths, strict=True))
    ]
    for prompt in prompts:
        q[prompt.first_query : prompt.first_query + window] = torch.randn(window, heads, head_dim)
    packed = pack_prompts(prompts, "cpu")
    out = torch.full((packed.total + 6,), float("nan"))
    got = paged_prompt_mass(q, window, cache, table, packed, 0.125, out=out[3:-3])
    assert got.data_ptr() == out[3:].data_ptr() and out[[0, 1, 2, -3, -2, -1]].isnan().all()
    for prompt, of_prompt, place in zip(prompts, slots, packed.places, strict=True):
        queries = q[prompt.first_query : prompt.first_query + window]
        expected = prompt_mass(queries.double(), cache[of_prompt.long()].double(), 0.125)
        torch.testing.assert_close(got[place], expected.float(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("prompts", [[], [Prompt(0, 0, 0)], [Prompt(0, 3, 0), Prompt(1, 0, 5)]])
def test_prompts_without_earlier_tokens_are_refused(prompts):
    with pytest.raises(ValueError, match="earlier_tokens >= 1"):
        pack_prompts(prompts, "cpu")


def test_what_the_kernels_do_not_take_is_refused_by_name():
    q, cache, slots = make(3, 70, 4, 2, 64)
    one = pack_prompts([Prompt(0, 70, 0)], "cpu")

    def ask(q, cache, slots=slots):
        paged_prompt_mass(q, 3, cache, slots[None], one, 1.0)

    with pytest.raises(ValueError, match="num_q_heads=3 is not a multiple of num_kv_heads=2"):
        ask(q[:, :3], cache)
    with pytest.raises(ValueError, match="head_dim=32"):
        ask(q[..., :32], cache)
    with pytest.raises(
        ValueError, match=r"k_cache is torch\.bfloat16: expected one of \(torch\.float32,"
    ):
        ask(q, cache.bfloat16())
    with pytest.raises(ValueError, match="contiguous within a token"):
        ask(q.transpose(0, 1).contiguous().transpose(0, 1), cache)
    with pytest.raises(ValueError, match=r"slot_table is torch\.int64"):
        ask(q, cache, slots.long())
