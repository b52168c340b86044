# SPDX-License-Identifier: Apache-2.0
"""The kernels on a GPU: every dtype and head size, beside FlashInfer, and in CUDA graphs."""

import ctypes

import pytest
import torch

from decode_case import INTERPRETED, WRITTEN, DecodeCase, assert_step
from longflow_kernels import prompt_mass
from longflow_kernels.attend_score_evict import op
from longflow_kernels.attend_score_evict.l2 import set_aside_l2
from longflow_kernels.attend_score_evict.launch import launch_config
from longflow_kernels.attend_score_evict.op import attend_score_evict
from longflow_kernels.attend_score_evict.rows import StepRow, pack_rows
from longflow_kernels.compress_prompt.kernel import (
    combine_chunks_kernel,
    mass_kernel,
    normaliser_kernel,
)
from longflow_kernels.compress_prompt.op import Prompt, pack_prompts, paged_prompt_mass

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(INTERPRETED, reason="set LONGFLOW_TEST_DEVICE=cuda on a machine with a GPU"),
]

FULL = StepRow(kv_len=1111, overwrites=True, scored=True)
FILLS_NOW = StepRow(kv_len=640, scored=True)
GROWING = StepRow(kv_len=900)
NEW = StepRow(kv_len=1)
PADDED = StepRow(kv_len=0)
RING = StepRow(kv_len=300, overwrites=True, given_victim=17)
BY_ATTENTION = StepRow(kv_len=700, overwrites=True, scored=True, by_attention=True)
MIXED = [FULL, BY_ATTENTION, GROWING, PADDED, FILLS_NOW, NEW, RING]
TOLERANCE = {
    torch.bfloat16: dict(tolerance=2e-2, score_rounding=2e-3),
    torch.float16: dict(tolerance=3e-3, score_rounding=2e-3),
}


def on_gpu(rows, **options) -> DecodeCase:
    heads, kv_heads = options.pop("heads", (32, 8))
    head_dim = options.setdefault("head_dim", 128)
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    config = options.pop("config", launch_config(len(rows), kv_heads, head_dim, sms))
    options.setdefault("dtype", torch.bfloat16)
    return DecodeCase(rows, heads, kv_heads, device="cuda", config=config, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("heads", [(8, 8), (16, 8), (28, 4), (32, 8), (16, 1)], ids=str)
@pytest.mark.parametrize("fp8", [False, True], ids=["same", "fp8"])
def test_every_dtype_head_size_and_group(dtype, head_dim, heads, fp8):
    scales = dict(cache_dtype=torch.float8_e4m3fn, k_scale=0.5, v_scale=2.0) if fp8 else {}
    case = on_gpu(MIXED, heads=heads, head_dim=head_dim, dtype=dtype, **scales)
    assert_step(case, **TOLERANCE[dtype])


@pytest.mark.parametrize("cap", [5.0, 50.0])
def test_logit_cap(cap):
    assert_step(on_gpu(MIXED, logit_cap=cap), **TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("victim_heads", [1, 8])
@pytest.mark.parametrize("protect", [(0, 0), (4, 0), (4, 32)], ids=str)
def test_victims_per_layer_or_head_with_protected_tokens(victim_heads, protect):
    rows = [StepRow(n, True, True, written=n // 2) for n in (100, 777, 3200)]
    case = on_gpu(
        [*rows, StepRow(200, scored=True), PADDED],
        victim_heads=victim_heads,
        protect_sink_tokens=protect[0],
        protect_recent_tokens=protect[1],
    )
    assert_step(case, **TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("victim_heads", [1, 8])
@pytest.mark.parametrize("fp8", [False, True], ids=["same", "fp8"])
def test_rows_that_remember_beside_others(victim_heads, fp8):
    """A slot's highest score, decayed, is read, raised and written as scores are combined."""
    memory = dict(overwrites=True, scored=True, remembers=True)
    rows = [
        *(StepRow(n, **memory, written=n // 2) for n in (64, 777, 3200)),
        StepRow(500, **memory, written=1),
        StepRow(640, scored=True, remembers=True),
        StepRow(700, **memory, written=50, by_attention=True),
        *MIXED,
    ]
    scales = dict(cache_dtype=torch.float8_e4m3fn, k_scale=0.5, v_scale=2.0) if fp8 else {}
    case = on_gpu(rows, victim_heads=victim_heads, protect_sink_tokens=4, **scales)
    assert_step(case, **TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("fp8", [False, True], ids=["same", "fp8"])
def test_rows_with_novelty_beside_others(head_dim, fp8):
    """Keys are compared with the newest ones at the first overwrite and every sixteenth."""
    memory = dict(overwrites=True, scored=True, uses_novelty=True)
    rows = [
        *(StepRow(n, **memory, written=w) for n, w in ((3200, 1), (3200, 160), (777, 32))),
        *(StepRow(n, **memory, written=w) for n, w in ((500, 1), (100, 16), (640, 41))),
        StepRow(700, overwrites=True, scored=True, remembers=True, written=48),
        StepRow(300, scored=True, uses_novelty=True),
        *MIXED,
    ]
    scales = dict(cache_dtype=torch.float8_e4m3fn, k_scale=0.5, v_scale=2.0) if fp8 else {}
    protect = dict(protect_sink_tokens=4, protect_recent_tokens=64)
    case = on_gpu(rows, head_dim=head_dim, **protect, **scales)
    assert_step(case, **TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("batch", [1, 2, 37, 128, 512])
def test_batches(batch):
    rows = [
        [FULL, GROWING, FILLS_NOW, NEW, StepRow(3200, True, True), StepRow(2048)][i % 6]
        for i in range(batch)
    ]
    small = [StepRow(min(r.kv_len, 400), r.overwrites, r.scored) for r in rows]
    case = on_gpu(small if batch > 100 else rows, heads=(8, 2), head_dim=64)
    assert_step(case, **TOLERANCE[torch.bfloat16])


def assert_same_bits(left: dict, right: dict) -> None:
    for name in WRITTEN:
        if left.get(name) is not None:
            raw = [side[name].contiguous().view(torch.uint8) for side in (left, right)]
            assert torch.equal(*raw), name


def rows_with_novelty(batch: int) -> list[StepRow]:
    """Some compare keys in this step, one of them all with all."""
    written = [(1, 16, 17, 3200, 24)[i % 5] for i in range(batch)]
    return [StepRow(3200, True, True, uses_novelty=True, written=w) for w in written]


@pytest.mark.parametrize("novelty", [False, True], ids=["plain", "novelty"])
def test_the_same_input_gives_the_same_bits(novelty):
    rows = rows_with_novelty(24) if novelty else [StepRow(3200, True, True)] * 24
    case = on_gpu(rows, protect_recent_tokens=16 * novelty)
    out, after = case.run()
    for _ in range(20):
        again, after_again = case.run()
        assert torch.equal(out, again)
        assert_same_bits(after, after_again)


@pytest.mark.parametrize("batch", [3, 48])
@pytest.mark.parametrize("fp8", [False, True], ids=["same", "fp8"])
def test_kernels_that_run_side_by_side_give_the_bits_of_one_after_the_other(
    batch, fp8, monkeypatch
):
    scales = dict(cache_dtype=torch.float8_e4m3fn, k_scale=0.5, v_scale=2.0) if fp8 else {}
    case = on_gpu(rows_with_novelty(batch), protect_recent_tokens=16, **scales)
    beside = [case.run() for _ in range(5)]
    monkeypatch.setattr(op, "_dependent_launch", lambda device: False)
    out, after = case.run()
    for again, after_again in beside:
        assert torch.equal(out, again)
        assert_same_bits(after, after_again)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("heads", [(32, 8), (16, 8), (28, 4)], ids=str)
def test_error_against_float64_is_no_worse_than_flashinfers(dtype, heads):
    import flashinfer

    rows = [StepRow(n) for n in (3200, 1600, 517, 64)]
    case = on_gpu(rows, heads=heads, dtype=dtype, peak=2.0)
    out, after = case.run()
    expected, _ = case.reference()
    indptr = torch.tensor([0, 3200, 4800, 5317, 5381], dtype=torch.int32, device="cuda")
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(128 << 20, dtype=torch.uint8, device="cuda"), "NHD", use_tensor_cores=True
    )
    wrapper.plan(
        indptr,
        case.tensors["kv_indices"],
        torch.ones(4, dtype=torch.int32, device="cuda"),
        *heads,
        128,
        1,
        q_data_type=dtype,
        kv_data_type=dtype,
        sm_scale=128**-0.5,
    )
    # FlashInfer also reads slots past a row's end: it must not meet the poison there.
    cache = tuple(after[name].nan_to_num().unsqueeze(1) for name in ("k_cache", "v_cache"))
    theirs = wrapper.run(case.tensors["q"], cache)
    assert theirs.shape == out.shape
    errors = [(x.cpu().double() - expected.out).abs() for x in (out, theirs)]
    print("ERROR", dtype, heads, [(e.max().item(), e.mean().item()) for e in errors])
    assert errors[0].mean() <= errors[1].mean() * 1.05
    assert errors[0].max() <= errors[1].max() * 1.5


@pytest.mark.parametrize("novelty", [False, True], ids=["plain", "novelty"])
def test_a_cuda_graph_replay_equals_an_eager_step(novelty):
    """Captured with padded rows only, replayed with two different steps."""
    rows = [FULL, GROWING, FILLS_NOW, RING, *rows_with_novelty(5 * novelty)]
    cases = [on_gpu(rows, seed=seed, protect_recent_tokens=16 * novelty) for seed in (1, 2)]
    workspace = cases[0].workspace()
    static = {
        name: None if value is None else value.clone() for name, value in cases[0].copies().items()
    }
    arguments = cases[0].arguments(static)
    static["fields"].zero_()

    def step():
        return attend_score_evict(**arguments, workspace=workspace)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for case in cases:
        for name, value in case.copies().items():
            if value is not None:
                static[name].copy_(value)
        graph.replay()
        want, after = case.run()
        assert torch.equal(out, want)
        assert_same_bits(static, after)


def test_no_host_synchronisation():
    case = on_gpu(MIXED)
    case.run()
    arguments, workspace = case.arguments(case.copies()), case.workspace()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        attend_score_evict(**arguments, workspace=workspace)
        host = pack_rows(MIXED, workspace.score_capacity).pin_memory()
        host.to("cuda", non_blocking=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_l2_cache_is_set_aside_and_given_back():
    def limit() -> int:
        size = ctypes.c_size_t()
        assert not ctypes.CDLL("libcuda.so.1").cuCtxGetLimit(ctypes.byref(size), 6)
        return size.value

    case = on_gpu(MIXED)
    workspace, score_bytes = case.workspace(), 32 * 2
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    try:
        assert workspace.keep_in_l2(100_000) == 100_000 * score_bytes <= limit() < l2 / 2
        assert workspace.l2_capacity == 100_000
        room = workspace.keep_in_l2(1 << 30)  # more than there is
        assert 0.39 * l2 < room <= limit() < l2 / 2
        assert_step(case, **TOLERANCE[torch.bfloat16])
        assert workspace.keep_in_l2(0) == 0 == limit()
        assert workspace.l2_capacity == workspace.score_capacity
    finally:
        set_aside_l2(0, torch.device("cuda"))


@pytest.mark.parametrize("fp8", [False, True], ids=["same", "fp8"])
@pytest.mark.parametrize("lengths", [(1,), (1000,), (32_000,), (700, 1, 5000, 668)], ids=str)
@pytest.mark.parametrize("heads", [(32, 8), (28, 4)], ids=str)
def test_prompt_mass(heads, lengths, fp8):
    num_heads, kv_heads = heads
    total, count = sum(lengths), len(lengths)
    q = torch.randn(50 * count, num_heads, 128, dtype=torch.bfloat16, device="cuda")
    cache = torch.full((total + 99, kv_heads, 128), float("nan"), device="cuda")
    taken = torch.randperm(total + 99, device="cuda")[:total].to(torch.int32)
    cache[taken.long()] = torch.randn(total, kv_heads, 128, device="cuda")
    cache = cache.to(torch.float8_e4m3fn if fp8 else torch.bfloat16)
    scale = 0.5 if fp8 else 1.0
    table = torch.full((count + 1, max(lengths)), 1 << 30, dtype=torch.int32, device="cuda")
    for row, slots in enumerate(taken.split(lengths)):
        table[count - row, : len(slots)] = slots
    prompts = [Prompt(count - i, n, 50 * i + 11) for i, n in enumerate(lengths)]
    packed = pack_prompts(prompts, "cuda")
    got = paged_prompt_mass(q, 32, cache, table, packed, 128**-0.5, k_scale=scale)
    for prompt, slots, place in zip(prompts, taken.split(lengths), packed.places, strict=True):
        keys = cache.view(torch.uint8) if fp8 else cache
        keys = keys[slots.long()].view(cache.dtype).float() * scale
        queries = q[prompt.first_query : prompt.first_query + 32]
        want = prompt_mass(queries, keys, 128**-0.5)
        torch.testing.assert_close(got[place], want, rtol=2e-2, atol=1e-5)


def test_prompts_of_any_length_share_their_kernels():
    """A server must not compile while it works."""
    q = torch.randn(32, 8, 128, dtype=torch.bfloat16, device="cuda")
    cache = torch.randn(2048, 4, 128, dtype=torch.bfloat16, device="cuda")
    slots = torch.randperm(2048, device="cuda").to(torch.int32)
    kernels = (normaliser_kernel, combine_chunks_kernel, mass_kernel)
    compiled = []
    mass = torch.empty(5000, device="cuda")
    for first, lengths in ((0, [16]), (4, [1]), (1, [1000]), (3, [1024, 7, 16])):
        packed = pack_prompts([Prompt(0, n, 0) for n in lengths], "cuda")
        out = mass[first : first + packed.total]
        paged_prompt_mass(q, 32, cache, slots[None], packed, 128**-0.5, out=out)
        compiled.append([len(kernel.device_caches[0][0]) for kernel in kernels])
    assert compiled[1:] == compiled[:1] * 3
