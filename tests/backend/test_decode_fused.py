# SPDX-License-Identifier: Apache-2.0
"""FusedDecode on a stand-in for SGLang's model runner: eager steps, and a graph's static memory."""

import os
from types import SimpleNamespace

import pytest
import torch

from longflow_kernels import Novelty, RankRule
from longflow_kernels.attend_score_evict.arguments import DecodeStep, KVCache, RowState
from longflow_kernels.attend_score_evict.reference import attend_score_evict_reference
from longflow_kernels.attend_score_evict.rows import NUM_FIELDS
from sglang_longflow.backend.decode_fused import FusedDecode
from sglang_longflow.backend.policy_memory import PolicyMemory
from sglang_longflow.backend.victim_state import VictimState
from sglang_longflow.core.contracts import DecodeView, FullRow, KVBudget
from sglang_longflow.core.layers import KVLayers
from sglang_longflow.policies import make_policy

NO_GPU = os.environ.get("LONGFLOW_TEST_DEVICE", "cpu") == "cpu"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not NO_GPU, reason="runs in Triton's interpreter"),
]

LAYERS, HEADS, KV_HEADS, DIM, ROWS, WIDTH = 2, 4, 2, 64, 6, 100
LAYER = SimpleNamespace(
    layer_id=1,
    scaling=0.125,
    logit_cap=0.0,
    tp_q_head_num=HEADS,
    tp_k_head_num=KV_HEADS,
    tp_v_head_num=KV_HEADS,
    qk_head_dim=DIM,
    v_head_dim=DIM,
)


class World:
    """A pool, rows of slots in it, and a decode over them."""

    def __init__(self, policy="longflow", recent=0):
        slots = torch.randperm(ROWS * WIDTH + 1)[: ROWS * WIDTH]
        self.req_to_token = slots.view(ROWS, WIDTH).to(torch.int32)
        self.k = torch.randn(LAYERS, ROWS * WIDTH + 1, KV_HEADS, DIM)
        self.v = torch.randn(LAYERS, ROWS * WIDTH + 1, KV_HEADS, DIM)
        pool = SimpleNamespace(
            get_key_buffer=lambda layer: self.k[layer], get_value_buffer=lambda layer: self.v[layer]
        )
        runner = SimpleNamespace(
            req_to_token_pool=SimpleNamespace(req_to_token=self.req_to_token), token_to_kv_pool=pool
        )
        self.policy = make_policy(policy, protect_recent_tokens=recent)
        kept = self.policy.recent_tokens_kept
        self.state = VictimState(LAYERS, ROWS, kept, torch.device("cpu"))
        if kept:
            self.state.recent[:] = torch.randperm(kept, dtype=torch.int32)
        self.memory = PolicyMemory(
            self.policy.needs,
            num_layers=LAYERS,
            num_rows=ROWS,
            num_slots=ROWS * WIDTH + 1,
            num_q_heads=HEADS,
            head_dim=DIM,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        self.changing = [self.k, self.v, self.state.next_slot]
        if kept:
            self.changing.append(self.state.recent)
        if self.memory.slot_values is not None:
            self.memory.slot_score.uniform_(0, 40)
            if self.memory.slot_similarity is not None:
                self.memory.slot_similarity.uniform_(0, 1)
                self.memory.row_level.uniform_(0, 1)
                self.memory.row_recall.uniform_(0, 2 * self.policy.recall_threshold)
                self.changing += [self.memory.row_level, self.memory.row_recall]
            self.changing.append(self.memory.slot_values)
        self.decode = FusedDecode(
            runner,
            self.state,
            self.policy,
            HEADS,
            WIDTH,
            self.memory,
            KVLayers(tuple(range(LAYERS))),
        )

    def snapshot(self):
        return [tensor.clone() for tensor in self.changing]

    def restore(self, saved):
        for tensor, old in zip(self.changing, saved, strict=True):
            tensor.copy_(old)


def batch_of(rows, kv_lens, padding=0):
    rows, lens = rows + [0] * padding, kv_lens + [1] * padding
    return SimpleNamespace(
        rids=[str(row) for row in rows],
        batch_size=len(rows),
        num_padding=padding,
        req_pool_indices=torch.tensor(rows),
        seq_lens_cpu=torch.tensor(lens),
        seq_lens_sum=sum(lens),
    )


def view_of(world, kv_lens, full, overwrite):
    """`full`: batch index -> tokens overwritten so far."""
    budgets = {i: KVBudget(kv_lens[i], world.policy) for i in full}
    return DecodeView(
        kv_lens=kv_lens,
        overwrite=[i in overwrite for i in range(len(kv_lens))],
        fresh=[False] * len(kv_lens),
        full_rows=[FullRow(i, budgets[i], done, done + 9, False) for i, done in full.items()],
    )


def qkv(batch):
    return (
        torch.randn(batch, HEADS * DIM),
        torch.randn(batch, KV_HEADS * DIM),
        torch.randn(batch, KV_HEADS * DIM),
    )


def expected_rule(name):
    """Written out: the policies' published numbers."""
    if name == "longflow":
        return RankRule()
    if name == "longflow-peak":
        return RankRule(decay=0.95)
    novelty = Novelty(weight=16.0, level_share=0.2, recall_threshold=0.04, similarity_threshold=0.9)
    return RankRule(first_tokens_kept=4, decay=0.95, novelty=novelty)


def state_of(world, layer):
    """The tensors of one layer, each taken from where the server keeps it."""
    memory, recent = world.memory, world.state.recent
    remembered = {}
    if memory.slot_values is not None:
        remembered["slot_values"] = memory.slot_values[layer]
    if memory.row_level is not None:
        remembered["row_level"], remembered["row_recall"] = (
            memory.row_level[layer],
            memory.row_recall,
        )
    return RowState(
        world.state.next_slot[layer],
        None if recent is None else recent[layer],
        recall_pace=0.02 / LAYERS,
        **remembered,
    )


@pytest.mark.parametrize(
    ("policy", "done"),
    [("longflow", 4), ("longflow-peak", 4), *(("longflow-novel", n) for n in (1, 4, 16))],
)
def test_an_eager_step_equals_the_reference(policy, done):
    world = World(policy)
    kv_lens = [80, 7, 93]
    batch = batch_of([3, 1, 5], kv_lens)
    world.state.next_slot[1, 3] = 71
    view = view_of(world, kv_lens, full={0: done, 2: 0}, overwrite={0})
    q, k, v = qkv(3)
    saved = world.snapshot()
    assert world.decode.rule == expected_rule(policy)  # a weight alone need not change a victim
    world.decode.begin(batch, view)
    got = world.decode.forward(q, k, v, LAYER, batch)
    step = world.decode._step
    after = world.snapshot()
    world.restore(saved)
    want = attend_score_evict_reference(
        q.view(3, HEADS, DIM),
        k.view(3, KV_HEADS, DIM),
        v.view(3, KV_HEADS, DIM),
        KVCache(world.k[1], world.v[1]),
        DecodeStep(
            torch.cat([world.req_to_token[r, :n] for r, n in zip([3, 1, 5], kv_lens)]),
            batch.req_pool_indices,
            step.fields,
            step.config,
        ),
        state_of(world, 1),
        expected_rule(policy),
        scaling=0.125,
    )
    torch.testing.assert_close(got.view(3, HEADS, DIM).double(), want.out, rtol=0, atol=2e-6)
    memory = {"longflow": 0, "longflow-peak": 1, "longflow-novel": 3}[policy]
    exact = len(after) - memory
    for mine, theirs in zip(after[:exact], world.snapshot()):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(after[exact:], world.snapshot()[exact:]):
        torch.testing.assert_close(mine, theirs, rtol=3e-3, atol=1e-9)
        assert not torch.equal(mine, saved[exact])
    assert sorted(want.scores) == [0, 2]


def test_a_batch_without_a_bounded_row_appends():
    world = World()
    batch = batch_of([2, 4], [9, 30])
    q, k, v = qkv(2)
    world.decode.begin(batch, None)
    before = world.state.next_slot.clone()
    world.decode.forward(q, k, v, LAYER, batch)
    for i, (row, kv_len) in enumerate([(2, 9), (4, 30)]):
        slot = int(world.req_to_token[row, kv_len - 1])
        assert torch.equal(world.k[1, slot], k[i].view(KV_HEADS, DIM))
        assert torch.equal(world.v[1, slot], v[i].view(KV_HEADS, DIM))
    assert torch.equal(world.state.next_slot, before)


def test_streaming_victims_come_from_the_host():
    world = World("streaming")
    world.state.next_slot[1, 3] = 6
    batch = batch_of([3], [16])
    world.decode.begin(batch, view_of(world, [16], full={0: 6}, overwrite={0}))
    world.decode.forward(*qkv(1), LAYER, batch)
    assert world.state.next_slot[1, 3] == world.policy.known_victim(16, 6) == 6


@pytest.mark.parametrize(
    ("padding", "policy"),
    [(0, "longflow"), (3, "longflow"), (3, "longflow-peak"), (3, "longflow-novel")],
)
def test_a_replay_in_static_memory_equals_an_eager_step(padding, policy):
    """Two different replays of one captured shape, each like the eager step."""
    world = World(policy)
    world.decode.init_cuda_graph_state(8)
    world.decode.begin_capture(2 + padding)
    captured = world.decode._step
    before = world.snapshot()
    world.decode.forward(*qkv(2 + padding), LAYER, batch_of([0] * (2 + padding), [1] * 2, padding))
    for mine, theirs in zip(before, world.snapshot()):
        assert torch.equal(mine, theirs), "a capture wrote to the pool or the state"
    for rows, kv_lens in (([4, 2], [84, 9]), ([1, 5], [76, 31])):
        world.state.next_slot[1, rows[0]] = 3
        view = view_of(world, kv_lens, full={0: 2}, overwrite={0})
        q, k, v = qkv(2 + padding)
        saved = world.snapshot()
        eager = batch_of(rows, kv_lens)
        world.decode.begin(eager, view)
        want = world.decode.forward(q[:2], k[:2], v[:2], LAYER, eager)
        expected = world.snapshot()
        world.restore(saved)
        padded = batch_of(rows, kv_lens, padding)
        world.decode.begin_replay(padded, view)
        replayed = world.decode._step
        assert replayed.fields.data_ptr() == captured.fields.data_ptr()
        assert replayed.kv_indices.data_ptr() == captured.kv_indices.data_ptr()
        got = world.decode.forward(q, k, v, LAYER, padded)
        torch.testing.assert_close(got[:2], want, rtol=0, atol=1e-6)
        assert not got[2:].any()
        for mine, theirs in zip(expected, world.snapshot()):
            assert torch.equal(mine, theirs)


def test_sglang_warm_up_batches_touch_nothing():
    world = World()
    batch = batch_of([0, 0], [1, 1])
    batch.rids = None
    before = world.snapshot()
    world.decode.begin(batch, None)
    assert not world.decode.forward(*qkv(2), LAYER, batch).any()
    for mine, theirs in zip(before, world.snapshot()):
        assert torch.equal(mine, theirs)


def test_a_layer_without_its_own_kv_is_refused_by_name():
    world = World()
    batch = batch_of([1], [5])
    world.decode.begin(batch, None)
    q, k, v = qkv(1)
    with pytest.raises(RuntimeError, match="layer 1 has no K/V of its own"):
        world.decode.forward(q, None, None, LAYER, batch)
    with pytest.raises(RuntimeError, match="layer 1 has no K/V of its own"):
        world.decode.forward(q, k, v, LAYER, batch, save_kv_cache=False)


def test_bytes_count_the_graph_memory():
    world = World()
    before = world.decode.nbytes
    world.decode.init_cuda_graph_state(8)
    assert world.decode.nbytes - before == 4 * (NUM_FIELDS * 8 + 8 * WIDTH)
