# SPDX-License-Identifier: Apache-2.0
"""The device's memory between steps, against plain Python lists."""

import random

import pytest
import torch

from sglang_longflow.backend.victim_state import VictimState

CPU = torch.device("cpu")


def ints(values):
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize("heads", [1, 4])
def test_cut_rows_fill_their_last_place_in_every_layer_and_others_stay(heads):
    state = VictimState(3, 8, 0, CPU, heads)
    state.next_slot.fill_(77)
    state.start_cut_rows(ints([5, 2]), ints([40, 64]))
    assert state.next_slot[:, 5].tolist() == [[39] * heads] * 3
    assert state.next_slot[:, 2].tolist() == [[63] * heads] * 3
    others = [0, 1, 3, 4, 6, 7]
    assert (state.next_slot[:, others] == 77).all()


def test_no_protection_keeps_no_ring():
    state = VictimState(2, 4, 0, CPU)
    assert state.recent is None
    assert state.record_written(0, ints([1]), 16, [0]) is None
    assert state.state_bytes == 2 * 4 * 4


@pytest.mark.parametrize("recent", [1, 5])
def test_state_bytes_count_the_ring_and_the_heads(recent):
    assert VictimState(2, 4, recent, CPU).state_bytes == 2 * 4 * 4 * (1 + recent)
    assert VictimState(2, 4, recent, CPU, 3).state_bytes == 3 * 2 * 4 * 4 * (1 + recent)


@pytest.mark.parametrize("recent", [1, 2, 3, 7])
@pytest.mark.parametrize("cut", [False, True])
def test_ring_holds_the_last_written_row_indices(recent, cut):
    """Row indices are written 0, 1, .. budget - 1 (a cut row's are there at once), then chosen."""
    budget, layers, row = 16, 2, 3
    rng = random.Random(recent)
    state = VictimState(layers, 6, recent, CPU)
    state.recent.fill_(-1)
    written = [list(range(budget)) for _ in range(layers)]
    if cut:
        state.start_cut_rows(ints([row]), ints([budget]))
    for done in range(3 * recent + 40):
        for layer in range(layers):
            if done:
                written[layer].append(int(state.next_slot[layer, row]))
            ring = state.record_written(layer, ints([row]), budget, [done])
            assert ring.shape == (1, recent)
            assert sorted(ring[0].tolist()) == sorted(written[layer][-recent:]), done
            free = [i for i in range(budget) if i not in ring[0].tolist()]
            state.next_slot[layer, row] = rng.choice(free)


def test_rows_in_different_phases_do_not_touch_each_other():
    budget, recent, layers = 24, 5, 2
    rng = random.Random(9)
    state = VictimState(layers, 12, recent, CPU)
    state.recent.fill_(-7)
    starts = {2: 0, 11: 0, 4: 3, 7: 9, 1: 30}  # row: step in which it fills
    models = {row: [list(range(budget)) for _ in range(layers)] for row in starts}
    for step in range(80):
        batch = [row for row, start in starts.items() if step >= start]
        rng.shuffle(batch)
        if step % 3 == 2:  # some rows wait for their turn: their phase stands still
            starts = {
                row: start + (row not in batch[:2]) if row in batch else start
                for row, start in starts.items()
            }
            batch = batch[:2]
        done = [step - starts[row] for row in batch]
        for layer in range(layers):
            for row, n in zip(batch, done):
                if n:
                    models[row][layer].append(int(state.next_slot[layer, row]))
            ring = state.record_written(layer, ints(batch), budget, done)
            for i, row in enumerate(batch):
                assert sorted(ring[i].tolist()) == sorted(models[row][layer][-recent:])
                assert ring[i].tolist() == state.recent[layer, row, 0].tolist()
                free = sorted(set(range(budget)) - set(ring[i].tolist()))
                state.next_slot[layer, row] = rng.choice(free)
        untouched = [row for row in range(12) if row not in starts]
        assert (state.recent[:, untouched] == -7).all()


def test_reused_row_forgets_the_ring_of_its_predecessor():
    state = VictimState(1, 2, 4, CPU)
    for done in range(9):
        state.next_slot[0, 1] = done % 8
        state.record_written(0, ints([1]), 16, [done])
    ring = state.record_written(0, ints([1]), 10, [0])
    assert sorted(ring[0].tolist()) == [6, 7, 8, 9]
