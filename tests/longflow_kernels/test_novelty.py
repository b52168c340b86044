# SPDX-License-Identifier: Apache-2.0
"""How similar tokens are to newer ones, and a row's level: plain loops, the kernel interpreted."""

import pytest
import torch

from decode_case import INTERPRETED, DecodeCase, assert_step
from longflow_kernels.attend_score_evict.rows import StepRow
from longflow_kernels.limits import COMPARED_TOKENS
from longflow_kernels.novelty import op as similarity_op
from longflow_kernels.novelty.level import first_level, next_level
from longflow_kernels.novelty.op import update_similarity
from longflow_kernels.novelty.recall import next_recall, novelty_worth, recalled_part
from longflow_kernels.novelty.reference import found_similarity


def interpreted(test):
    """A test of kernels in Triton's interpreter."""
    skip = pytest.mark.skipif(not INTERPRETED, reason="the GPU runs test_kernels_gpu.py")
    return pytest.mark.slow(skip(test))


FIRST = StepRow(90, overwrites=True, scored=True, uses_novelty=True, written=1)
DUE = StepRow(75, overwrites=True, scored=True, uses_novelty=True, written=3 * COMPARED_TOKENS)
NOT_DUE = StepRow(40, overwrites=True, scored=True, uses_novelty=True, written=21)
FILLS_NOW = StepRow(33, scored=True, uses_novelty=True)
REMEMBERS = StepRow(61, overwrites=True, scored=True, remembers=True, written=COMPARED_TOKENS)
OTHERS = [StepRow(29), StepRow(0), StepRow(50, overwrites=True, scored=True, written=16)]
EXACT = dict(tolerance=2e-6, score_rounding=1e-5)


def plain(keys, order):
    """[n]: of each token to those that stand later in `order`, a loop over all pairs."""
    dim = keys.shape[2]
    slow = [c for c in range(dim) if c % (dim // 2) >= dim * 3 // 8]
    flat = keys[:, :, slow].reshape(len(keys), -1)
    found = [0.0] * len(keys)
    for place, one in enumerate(order):
        for other in order[place + 1 :]:
            cosine = float(flat[one] @ flat[other] / (flat[one].norm() * flat[other].norm()))
            found[one] = max(found[one], cosine)
    return torch.tensor(found, dtype=keys.dtype)


@pytest.mark.parametrize(("heads", "dim"), [(1, 64), (3, 64), (2, 96), (2, 128)])
def test_the_first_overwrite_compares_every_token_with_all_later_ones(heads, dim):
    keys = torch.randn(40, heads, dim, dtype=torch.float64)
    newest = int(torch.randint(40, (1,)))
    order = [*(i for i in range(40) if i != newest), newest]
    last = torch.full((COMPARED_TOKENS,), newest)
    torch.testing.assert_close(found_similarity(keys, last, 1), plain(keys, order))


def test_later_ones_compare_with_the_last_tokens_only():
    keys = torch.randn(50, 2, 64, dtype=torch.float64)
    order = torch.randperm(50).tolist()
    last = torch.tensor(order[-COMPARED_TOKENS:][::-1])
    found = found_similarity(keys, last, 2 * COMPARED_TOKENS)
    for i, one in enumerate(order):
        newer = order[max(i + 1, 50 - COMPARED_TOKENS) :]
        torch.testing.assert_close(found[one], plain(keys, [one, *newer])[one])
    assert found[last[0]] == 0.0


@pytest.mark.parametrize("overwrites", [0, 2, COMPARED_TOKENS - 1, COMPARED_TOKENS + 1])
def test_nothing_is_compared_in_between(overwrites):
    keys = torch.randn(30, 2, 64)
    assert not found_similarity(keys, torch.arange(COMPARED_TOKENS), overwrites).any()


def test_a_copy_is_as_like_as_can_be_and_its_opposite_not_at_all():
    keys = torch.randn(30, 2, 64)
    keys[3], keys[5] = keys[29] * 7.0, -keys[29]
    found = found_similarity(keys, torch.tensor([29] * COMPARED_TOKENS), 1)
    assert found[3] == pytest.approx(1.0) and found[5] < 0.95 and found.min() >= 0.0


@interpreted
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
def test_rows_with_novelty_beside_others(dim):
    rows = [FIRST, DUE, NOT_DUE, FILLS_NOW, REMEMBERS, *OTHERS]
    case = DecodeCase(
        rows,
        6,
        3,
        head_dim=dim,
        protect_sink_tokens=4,
        protect_recent_tokens=COMPARED_TOKENS,
        seed=dim,
    )
    assert_step(case, **EXACT)


@interpreted
@pytest.mark.parametrize("programs", [1, 3, 7])
def test_programs_that_share_many_rows(programs, monkeypatch):
    """More tiles than programs, and more rows than a program looks at together."""
    monkeypatch.setattr(similarity_op, "MAX_PROGRAMS", programs)
    monkeypatch.setattr(similarity_op, "BLOCK_ROWS", 4)
    rows = [DUE, NOT_DUE, *OTHERS, FIRST, DUE, DUE, FILLS_NOW, NOT_DUE, REMEMBERS, FIRST, DUE]
    case = DecodeCase(rows, protect_recent_tokens=COMPARED_TOKENS, seed=programs)
    assert_step(case, **EXACT)


@interpreted
@pytest.mark.parametrize(
    ("dtype", "cache", "limits"),
    [
        (torch.float16, None, dict(tolerance=2e-3, score_rounding=2e-3)),
        (torch.float32, torch.float8_e4m3fn, dict(tolerance=5e-6, score_rounding=1e-5)),
    ],
    ids=["fp16", "fp8"],
)
def test_half_and_fp8_keys(dtype, cache, limits):
    case = DecodeCase(
        [FIRST, DUE, NOT_DUE],
        dtype=dtype,
        cache_dtype=cache,
        k_scale=0.5 if cache else 1.0,
        v_scale=2.0 if cache else 1.0,
        protect_recent_tokens=20,
    )
    assert_step(case, **limits)


@interpreted
def test_similarity_decides():
    """The lowest score goes, unless another slot's token has been said again."""
    case = DecodeCase([DUE], protect_recent_tokens=COMPARED_TOKENS, seed=2)
    request = case.tensors["req_pool_indices"][0]
    case.row_recall[request] = 1.0  # more than enough
    _, after = case.run()
    before = int(after["next_slot"][request])
    newest = int(case.tensors["next_slot"][request])
    spared = {before, newest, *case.recent[request, 0].tolist()}
    other = next(place for place in range(75) if place not in spared)
    slots = case.tensors["kv_indices"].long()
    case.tensors["k_cache"][slots[other]] = case.tensors["k_new"][0]
    assert_step(case, **EXACT)
    _, after = case.run()
    assert after["next_slot"][request] == other
    case.row_recall[request] = 0.0  # nothing goes back: similarity does not count
    assert_step(case, **EXACT)
    _, after = case.run()
    assert after["next_slot"][request] != other


@interpreted
def test_rows_that_compare_nothing_keep_their_memory():
    case = DecodeCase([NOT_DUE, FILLS_NOW, REMEMBERS, *OTHERS], protect_recent_tokens=16)
    tensors = case.copies()
    before = tensors["slot_values"].clone()
    arguments = case.arguments(tensors)
    update_similarity(*(arguments[name] for name in ("k_new", "cache", "step", "state")))
    assert torch.equal(tensors["slot_values"].nan_to_num(), before.nan_to_num())


def test_a_level_follows_what_a_share_of_the_slots_are_below():
    """From a part of the mean score, and when all scores grow a hundredfold."""
    scores = torch.rand(3, 500, dtype=torch.float64) ** 2
    level = first_level(scores, share=0.2)
    torch.testing.assert_close(level, 0.2 * scores.mean(dim=1, keepdim=True))
    for scale in (1, 100):
        for _ in range(1000):
            level = next_level(level, scale * scores, share=0.2)
        below = (scale * scores < level).double().mean(dim=1)
        assert ((below - 0.2).abs() < 0.01).all()


def test_a_level_is_never_lost():
    nothing = torch.zeros(1, 8)
    level = first_level(nothing, share=0.2)
    assert level.item() > 0
    for _ in range(50):
        level = next_level(level, nothing, share=0.2)
    for _ in range(4000):
        level = next_level(level, nothing + 1, share=0.2)
    assert 0.5 < level.item() < 1.1


def test_a_recall_counts_what_goes_to_cold_slots():
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    past = torch.tensor([[0.1, 9.0, 0.1, 0.1]]).expand(2, -1)
    kept = torch.tensor([[False, False, True, False]]).expand(2, -1)
    part = recalled_part(scores, past, torch.full((2, 1), 0.5), kept)
    torch.testing.assert_close(part, torch.tensor([[0.5], [0.0]]))
    recall = torch.zeros(2, 1)
    for _ in range(300):
        recall = next_recall(recall, part, 0.02)
    torch.testing.assert_close(recall, part, rtol=0.01, atol=0)


def test_novelty_is_worth_all_or_next_to_nothing():
    worth = novelty_worth(torch.tensor([0.0, 0.01, 0.02, 0.04, 0.3]), threshold=0.04)
    torch.testing.assert_close(worth, torch.tensor([0.0, 2**-16, 2**-8, 1.0, 1.0]))


@interpreted
def test_what_it_does_not_take_is_refused_by_name():
    with pytest.raises(ValueError, match="recent holds 15 tokens: similarity looks at the last 16"):
        DecodeCase([DUE], protect_recent_tokens=15).run()
    with pytest.raises(ValueError, match="next_slot has 2 heads"):
        DecodeCase([DUE], victim_heads=2, protect_recent_tokens=16).run()
    missing = "state without recent: a rule with novelty needs them"
    with pytest.raises(ValueError, match=missing):
        DecodeCase([DUE]).run()
