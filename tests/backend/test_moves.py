# SPDX-License-Identifier: Apache-2.0
"""K/V moves: every source is read before any destination is written."""

import random

import pytest
import torch

from sglang_longflow.backend.moves import copy_moved_kv
from sglang_longflow.core.contracts import RowMove
from sglang_longflow.core.layers import KVLayers

LAYERS, SLOTS, HEADS, DIM = 3, 64, 2, 4
ALL = KVLayers(tuple(range(LAYERS)))


class Pool:
    """Plain tensors where SGLang's MHATokenToKVPool has its buffers."""

    def __init__(self, dtype=torch.float32):
        shape = (LAYERS, SLOTS, HEADS, DIM)
        if dtype.itemsize == 1:
            raw = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
            self.k, self.v = raw[0].view(dtype), raw[1].view(dtype)
        else:
            self.k, self.v = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)

    def get_key_buffer(self, layer_id):
        return self.k[layer_id]

    def get_value_buffer(self, layer_id):
        return self.v[layer_id]

    def bits(self):
        return torch.stack([self.k, self.v]).view(torch.uint8).clone()


def ints(values):
    return torch.tensor(list(values), dtype=torch.int64)


def naive(before, moves):
    """`before` is [2, layers, slots, ...]; one slot at a time out of a snapshot."""
    after = before.clone()
    for move in moves:
        for layer in range(LAYERS):
            source = move.src_slots.tolist()
            if move.keep is not None:
                source = [source[i] for i in move.keep[layer].tolist()]
            for s, d in zip(source, move.dst_slots.tolist(), strict=True):
                after[:, layer, d] = before[:, layer, s]
    return after


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("case", range(8))
def test_moves_equal_a_snapshot_copy_bit_for_bit(dtype, case):
    """Destinations of one move are sources of another, as when a given-back slot is taken again."""
    rng = random.Random(case)
    pool = Pool(dtype)
    destinations = rng.sample(range(SLOTS), 30)
    moves = []
    while len(destinations) > 6:
        size = rng.randint(0, 6)
        dst, destinations = destinations[:size], destinations[size:]
        if rng.random() < 0.5:
            moves.append(RowMove(ints(rng.sample(range(SLOTS), size)), ints(dst)))
        else:
            n = size + rng.randint(0, 9)
            keep = torch.stack([ints(sorted(rng.sample(range(n), size))) for _ in range(LAYERS)])
            moves.append(RowMove(ints(rng.sample(range(SLOTS), n)), ints(dst), keep))
    before = pool.bits()
    copy_moved_kv(moves, pool, ALL)
    assert torch.equal(pool.bits(), naive(before, moves))


def test_a_swap_between_two_moves():
    pool = Pool()
    before = pool.bits()
    copy_moved_kv([RowMove(ints([5]), ints([9])), RowMove(ints([9]), ints([5]))], pool, ALL)
    after = pool.bits()
    assert torch.equal(after[:, :, 5], before[:, :, 9])
    assert torch.equal(after[:, :, 9], before[:, :, 5])


def test_a_shift_within_one_move():
    pool = Pool()
    before = pool.bits()
    copy_moved_kv([RowMove(ints(range(10)), ints(range(1, 11)))], pool, ALL)
    assert torch.equal(pool.bits()[:, :, 1:11], before[:, :, :10])


def test_each_layer_keeps_its_own_positions():
    pool = Pool()
    before = pool.bits()
    keep = torch.tensor([[0, 1], [1, 3], [2, 3]])
    copy_moved_kv([RowMove(ints([40, 41, 42, 43]), ints([7, 8]), keep)], pool, ALL)
    after = pool.bits()
    for layer, (a, b) in enumerate([(40, 41), (41, 43), (42, 43)]):
        assert torch.equal(after[:, layer, 7], before[:, layer, a])
        assert torch.equal(after[:, layer, 8], before[:, layer, b])


def test_poisoned_slots_outside_the_moves_are_neither_read_nor_written():
    pool = Pool()
    mine = [3, 4, 5, 20, 21]
    others = [i for i in range(SLOTS) if i not in mine]
    pool.k[:, others] = torch.nan
    pool.v[:, others] = torch.nan
    keep = torch.tensor([[0, 2]] * LAYERS)
    copy_moved_kv([RowMove(ints([3, 4, 5]), ints([20, 21]), keep)], pool, ALL)
    for buffer in (pool.k, pool.v):
        assert torch.isnan(buffer[:, others]).all()
        assert not torch.isnan(buffer[:, mine]).any()


def test_nan_payloads_survive():
    pool = Pool()
    pool.k[:, 2] = torch.nan
    before = pool.bits()
    copy_moved_kv([RowMove(ints([2]), ints([50]))], pool, ALL)
    assert torch.equal(pool.bits()[:, :, 50], before[:, :, 2])


@pytest.mark.parametrize("moves", [[], [RowMove(ints([]), ints([]))]])
def test_nothing_to_move_changes_nothing(moves):
    pool = Pool()
    before = pool.bits()
    copy_moved_kv(moves, pool, ALL)
    assert torch.equal(pool.bits(), before)


def test_destinations_may_be_int32_as_in_req_to_token():
    pool = Pool()
    before = pool.bits()
    copy_moved_kv([RowMove(ints([2, 3]), ints([50, 51]).int())], pool, ALL)
    assert torch.equal(pool.bits()[:, :, 50:52], before[:, :, 2:4])
