# SPDX-License-Identifier: Apache-2.0
"""The fused decode kernels against float64, in Triton's interpreter (small shapes)."""

from dataclasses import replace

import pytest
import torch

from decode_case import INTERPRETED, SMALL, DecodeCase, assert_step
from longflow_kernels.attend_score_evict.launch import LaunchConfig, launch_config
from longflow_kernels.attend_score_evict.op import attend_score_evict
from longflow_kernels.attend_score_evict.rows import StepRow, pack_full_rows, pack_rows
from longflow_kernels.attend_score_evict.workspace import Workspace

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not INTERPRETED, reason="the GPU runs test_kernels_gpu.py"),
]

FULL = StepRow(kv_len=53, overwrites=True, scored=True)
FILLS_NOW = StepRow(kv_len=18, scored=True)
GROWING = StepRow(kv_len=35)
NEW = StepRow(kv_len=1)
PADDED = StepRow(kv_len=0)
BY_ATTENTION = StepRow(kv_len=45, overwrites=True, scored=True, by_attention=True)
RING = StepRow(kv_len=20, overwrites=True, given_victim=17)
MIXED = [FULL, GROWING, PADDED, FILLS_NOW, NEW, RING]
EXACT = dict(tolerance=2e-6, score_rounding=1e-5)
HALF = dict(tolerance=2e-3, score_rounding=1e-3)


@pytest.mark.parametrize(
    ("num_q_heads", "num_kv_heads"), [(1, 1), (3, 3), (4, 2), (6, 2), (7, 1), (16, 1)]
)
def test_head_groups(num_q_heads, num_kv_heads):
    case = DecodeCase(MIXED, num_q_heads, num_kv_heads, seed=num_q_heads)
    assert_step(case, **EXACT)


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_head_sizes_and_dtypes(head_dim, dtype):
    case = DecodeCase([FULL, FILLS_NOW, NEW], head_dim=head_dim, dtype=dtype, seed=head_dim)
    assert_step(case, **(HALF if dtype == torch.float16 else EXACT))


@pytest.mark.parametrize("victim_heads", [1, 3])
@pytest.mark.parametrize("seed", range(2))
def test_one_victim_per_layer_or_per_kv_head(victim_heads, seed):
    case = DecodeCase(MIXED, 6, 3, victim_heads=victim_heads, seed=seed)
    assert_step(case, **EXACT)
    if victim_heads > 1:  # heads do disagree: the test would not notice one victim for all
        _, after = case.run()
        assert after["next_slot"][case.tensors["req_pool_indices"][0]].unique().numel() > 1


@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_logit_cap(cap):
    assert_step(DecodeCase(MIXED, logit_cap=cap, peak=8.0), tolerance=2e-5, score_rounding=1e-4)


@pytest.mark.parametrize("protect", [(3, 0), (0, 5), (2, 7)])
@pytest.mark.parametrize("victim_heads", [1, 2])
def test_protected_tokens_are_never_chosen(protect, victim_heads):
    rows = [
        StepRow(kv_len=12, overwrites=True, scored=True, written=1),
        StepRow(kv_len=47, overwrites=True, scored=True, written=23),
        StepRow(kv_len=12, scored=True),
        StepRow(kv_len=9),
        PADDED,
    ]
    case = DecodeCase(
        rows,
        victim_heads=victim_heads,
        protect_sink_tokens=protect[0],
        protect_recent_tokens=protect[1],
    )
    assert_step(case, **EXACT)


@pytest.mark.parametrize("fp8", [torch.float8_e4m3fn, torch.float8_e4m3fnuz], ids=str)
def test_fp8_cache_with_scales(fp8):
    case = DecodeCase(
        [FULL, GROWING, FILLS_NOW],
        dtype=torch.float32,
        cache_dtype=fp8,
        k_scale=0.5,
        v_scale=2.0,
    )
    assert_step(case, tolerance=5e-6, score_rounding=1e-5)


@pytest.mark.parametrize("victim_heads", [1, 3])
def test_rows_ranked_by_attention_beside_others(victim_heads):
    rows = [BY_ATTENTION, FULL, GROWING, StepRow(29, scored=True, by_attention=True)]
    case = DecodeCase(rows, 6, 3, victim_heads=victim_heads, seed=4)
    case.tensors["v_cache"][::2] *= 50.0  # so that the two scores disagree
    assert_step(case, tolerance=1e-4, score_rounding=1e-5)
    plain = DecodeCase([FULL] * 8, 6, 3, seed=4)
    plain.tensors["v_cache"][::2] *= 50.0
    by_attention = pack_rows([replace(row, by_attention=True) for row in plain.rows], 2048)
    before = plain.run()[1]["next_slot"]
    plain.tensors["fields"] = by_attention
    assert not torch.equal(plain.run()[1]["next_slot"], before)


REMEMBERING = [
    StepRow(61, overwrites=True, scored=True, remembers=True, written=7),
    StepRow(33, overwrites=True, scored=True, remembers=True, written=1),
    StepRow(20, scored=True, remembers=True),
    StepRow(45, overwrites=True, scored=True, remembers=True, written=50, by_attention=True),
]


@pytest.mark.parametrize(("victim_heads", "protect"), [(1, (2, 3)), (3, (0, 0))])
def test_rows_that_remember_beside_others(victim_heads, protect):
    case = DecodeCase(
        [*REMEMBERING, *MIXED],
        6,
        3,
        victim_heads=victim_heads,
        protect_sink_tokens=protect[0],
        protect_recent_tokens=protect[1],
        seed=victim_heads,
    )
    assert_step(case, **EXACT)
    forgetful = replace(case, decay=0.0)
    requests = case.tensors["req_pool_indices"][:4]
    after, without = (one.run()[1]["next_slot"][requests] for one in (case, forgetful))
    assert not torch.equal(after[[0, 3]], without[[0, 3]])  # the memory decides
    assert torch.equal(after[[1, 2]], without[[1, 2]])  # and begins with the first overwrite


def test_a_memory_with_fp8_values_keeps_its_scale():
    case = DecodeCase(REMEMBERING, cache_dtype=torch.float8_e4m3fn, k_scale=0.5, v_scale=2.0)
    assert_step(case, tolerance=5e-6, score_rounding=1e-5)


def test_large_logits_need_the_running_maximum():
    assert_step(DecodeCase(MIXED, peak=60.0), tolerance=1e-3, score_rounding=1e-2)


@pytest.mark.parametrize(
    "config",
    [
        LaunchConfig(block_n=16, max_splits=1, min_split_tokens=16, chunks=1, chunk_slots=16),
        LaunchConfig(block_n=32, max_splits=8, min_split_tokens=1, chunks=8, chunk_slots=32),
        LaunchConfig(block_n=64, max_splits=2, min_split_tokens=64, chunks=4),
        LaunchConfig(
            block_n=32, max_splits=3, min_split_tokens=32, chunks=2, chunk_slots=64, voters=2
        ),
    ],
    ids=str,
)
def test_every_cut_of_the_work_gives_the_same(config):
    rows = [StepRow(kv_len=n, overwrites=n > 2, scored=True) for n in (1, 15, 16, 17, 64, 129)]
    assert_step(DecodeCase(rows, config=config), **EXACT)


def test_equal_scores_go_to_the_lowest_row_index():
    case = DecodeCase([StepRow(kv_len=40, overwrites=True, scored=True)])
    case.tensors["k_cache"][:] = 1.0
    case.tensors["v_cache"][:] = 1.0
    case.tensors["v_new"][:] = 9.0  # the newest token weighs more
    request = case.tensors["req_pool_indices"][0]
    for newest, lowest in ((0, 1), (30, 0), (39, 0)):
        case.tensors["next_slot"][request] = newest
        _, after = case.run()
        assert after["next_slot"][request] == lowest


def test_a_row_does_not_depend_on_its_batch_and_repeats_to_the_bit():
    case = DecodeCase(MIXED, 6, 2, seed=5)
    out, after = case.run()
    again, after_again = case.run()
    assert torch.equal(out, again)
    assert torch.equal(after["next_slot"], after_again["next_slot"])
    for index, row in enumerate(MIXED):
        alone, after_alone = case.alone(index).run()
        assert torch.equal(alone[0], out[index])
        request = case.tensors["req_pool_indices"][index]
        if row.kv_len:
            assert torch.equal(after_alone["next_slot"][request], after["next_slot"][request])


def test_a_workspace_is_ready_for_the_next_layer():
    """One workspace serves all layers and steps: nothing of a step may remain in it."""
    case = DecodeCase(MIXED)
    other = DecodeCase([GROWING, FULL, FULL, NEW, FILLS_NOW, PADDED], seed=3)
    workspace = case.workspace()
    for one in (case, other, case):
        out, after = one.run(workspace)
        expected, want = one.reference()
        torch.testing.assert_close(out.double(), expected.out, rtol=0, atol=2e-6)
        assert torch.equal(after["next_slot"], want["next_slot"])
        assert not workspace.arrived.any()


def test_padded_rows_are_zero_and_touch_nothing():
    case = DecodeCase([PADDED, FULL, PADDED])
    # SGLang pads with request 0 and slot 0: another request may own both.
    case.tensors["req_pool_indices"][0] = case.tensors["req_pool_indices"][1]
    case.tensors["req_pool_indices"][2] = case.tensors["req_pool_indices"][1]
    assert_step(case, **EXACT)
    out, _ = case.run()
    assert not out[[0, 2]].any()


def test_an_empty_batch():
    out, _ = DecodeCase([]).run()
    assert out.shape == (0, 4, 64)


def test_what_the_kernels_do_not_take_is_refused_by_name():
    case = DecodeCase([FULL])
    tensors, workspace = case.copies(), case.workspace()

    def call(config=SMALL, **changes):
        changed = replace(case, config=config).arguments({**tensors, **changes})
        attend_score_evict(**changed, workspace=workspace)

    call()
    with pytest.raises(ValueError, match=r"num_q_heads=4: expected 1 to 16 times num_kv_heads=3"):
        call(v_new=torch.zeros(1, 3, 64))
    with pytest.raises(ValueError, match="head_dim=80"):
        call(q=torch.zeros(1, 4, 80))
    with pytest.raises(ValueError, match=r"cache\.k is torch\.bfloat16"):
        call(k_cache=tensors["k_cache"].bfloat16())
    with pytest.raises(ValueError, match="next_slot has 3 heads: expected 1 or 2"):
        call(next_slot=torch.zeros(4, 3, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"fields is torch\.int64"):
        call(fields=tensors["fields"].long())
    with pytest.raises(ValueError, match=r"slot_values is torch\.float32 \(3,\): expected float32"):
        call(slot_values=torch.zeros(3))
    with pytest.raises(ValueError, match=r"kv_indices is torch\.int64"):
        call(kv_indices=tensors["kv_indices"].long())
    with pytest.raises(ValueError, match="batch=1 with max_splits=64"):
        call(LaunchConfig(max_splits=64))
    with pytest.raises(ValueError, match="block_n=256: expected a power of 2 from 16 to 128"):
        call(LaunchConfig(max_splits=4, block_n=256))
    with pytest.raises(ValueError, match="chunk_slots=32: expected a power of 2 from block_n=64"):
        call(LaunchConfig(max_splits=4, chunk_slots=32))
    with pytest.raises(ValueError, match="chunks=128"):
        call(LaunchConfig(max_splits=4, chunks=128))
    with pytest.raises(ValueError, match="256 slots together, the workspace has scores of 128"):
        pack_rows([FULL, FULL], 128)


@pytest.mark.parametrize(
    ("batch", "splits", "block_n"),
    [(1, 64, 64), (8, 8, 64), (32, 2, 64), (66, 1, 64), (90, 1, 128), (128, 1, 64), (181, 1, 64)],
)
def test_a_launch_fills_the_gpu_about_once_or_leaves_little_idle(batch, splits, block_n):
    """132 multiprocessors, 8 KV heads of 128: four small tiles at once on each, or two large."""
    config = launch_config(batch, 8, 128, 132)
    assert (config.max_splits, config.block_n) == (splits, block_n)


@pytest.mark.parametrize("batch", [1, 2, 8, 32, 128, 512])
@pytest.mark.parametrize("num_kv_heads", [1, 4, 8, 32])
def test_launch_configs_fit_the_workspace_of_a_server(batch, num_kv_heads):
    config = launch_config(batch, num_kv_heads, 128, 132)
    assert config.max_splits & (config.max_splits - 1) == 0
    assert config.chunks & (config.chunks - 1) == 0
    workspace = Workspace(
        max_batch=512,
        capacity_tokens=8,
        num_q_heads=num_kv_heads,
        v_head_dim=64,
        victim_heads=1,
        device="cpu",
        max_partials=4 * 132,
    )
    assert config.max_splits == 1 or batch * config.max_splits <= workspace.max_partials
    assert config.chunks <= workspace.best_score.shape[2]


def test_rows_without_a_bound_are_packed_from_their_lengths():
    lengths = [5, 0, 17, 1]
    expected = pack_rows([StepRow(kv_len=n) for n in lengths], 0)
    assert torch.equal(pack_full_rows(torch.tensor(lengths)), expected)
    assert torch.equal(pack_full_rows(torch.tensor([3])), pack_rows([StepRow(3)], 0))
    assert pack_full_rows(torch.zeros(0, dtype=torch.int64)).shape == pack_rows([], 0).shape


def test_workspace_reports_its_bytes():
    workspace = Workspace(
        max_batch=2,
        capacity_tokens=100,
        num_q_heads=4,
        v_head_dim=64,
        victim_heads=1,
        device="cpu",
        max_partials=8,
    )
    assert workspace.score_capacity == 128 + 2 * 128
    scores = 4 * (2 * (384 + 1024) + 4 * (384 + 1024) // 16)
    assert workspace.nbytes == scores + 4 * (8 * 4 * 64 + 8 * 4 + 5 * 2 * 64 + 2)


def test_without_a_gpu_no_cache_is_set_aside():
    workspace = DecodeCase(MIXED).workspace()
    assert workspace.keep_in_l2(1000) == 0
    assert workspace.l2_capacity == workspace.score_capacity
