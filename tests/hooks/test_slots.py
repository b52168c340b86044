# SPDX-License-Identifier: Apache-2.0
"""``alloc_for_decode`` over SGLang's real allocator, row table and radix tree, on any row.

Whatever it is given: afterwards committed equals allocated, no row is over its budget, and every
slot is free, the tree's or one row's. Imports SGLang (slow), inside the tests only.
"""

from array import array
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from real_tree import TREES, real_tree
from sglang_longflow.core import runtime
from sglang_longflow.core.contracts import KVBudget, KVRow
from sglang_longflow.core.layers import KVLayers
from sglang_longflow.policies import make_policy
from sglang_longflow.settings.config import LongFlowConfig

pytestmark = pytest.mark.sglang

POOL, LAYERS, VOCABULARY = 600, 2, 3
STREAMING = make_policy("streaming")


class Request:
    """What the hook and the tree read of SGLang's ``Req``."""

    def __init__(self, rid, tokens, row):
        from sglang.srt.managers.schedule_batch import ReqKvInfo

        self.rid, self.longflow_row = rid, row
        self.origin_input_ids = self.full_untruncated_fill_ids = array("q", tokens)
        self.output_ids, self.extra_key = array("q"), None
        self.extend_end = len(tokens)
        self.cache_salt = self.session_id = self.session = self.priority = None
        self.kv_rotation_base = self.last_node = self.lock = None
        self.prefix_len, self.inflight_middle_chunks = 0, 0
        self.skip_radix_cache_insert, self.to_finish = False, None
        self.kv = ReqKvInfo(kv_committed_len=len(tokens), kv_allocated_len=len(tokens))
        self.sampling_params = SimpleNamespace(max_new_tokens=1000)

    def get_fill_ids(self):
        return self.full_untruncated_fill_ids[: self.extend_end]

    def finished(self):
        return False


class Pools:
    """A prefilled batch in real pools; `tree` is "off", or the core of the radix tree."""

    def __init__(self, tree: str):
        from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
        from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

        self.rows = ReqToTokenPool(32, POOL, "cpu", False)
        self.allocator = TokenToKVPoolAllocator(POOL, torch.float32, "cpu", None, False)
        self.tree = real_tree(self.rows, self.allocator, tree)
        self.reqs = []

    def prefill(self, tokens, row, *, in_tree: bool) -> bool:
        """Add a request after its prefill; False where it does not fit."""
        slots = self.allocator.alloc(len(tokens))
        if slots is None:
            return False
        req = Request(f"r{len(self.reqs)}", tokens, row)
        self.rows.alloc([req])
        self.rows.write((req.kv.req_pool_idx, slice(0, len(tokens))), slots.to(torch.int32))
        req.last_node = self.tree.root_node_handle()
        req.lock = self.tree.lock(req.last_node)
        if in_tree:
            self.tree.checkpoint(req, up_to=len(tokens))
            # The tree had a part of it: what it took twice is free again.
        self.reqs.append(req)
        return True

    def batch(self):
        lengths = [len(req.origin_input_ids) for req in self.reqs]
        return SimpleNamespace(
            reqs=self.reqs,
            tree_cache=self.tree,
            token_to_kv_pool_allocator=self.allocator,
            req_to_token_pool=self.rows,
            req_pool_indices=torch.tensor([req.kv.req_pool_idx for req in self.reqs]),
            req_pool_indices_cpu=torch.tensor([req.kv.req_pool_idx for req in self.reqs]),
            seq_lens=torch.tensor(lengths),
            seq_lens_cpu=torch.tensor(lengths),
            device="cpu",
            batch_is_full=True,
            model_config=SimpleNamespace(is_encoder_decoder=False),
            maybe_evict_swa=lambda: None,
        )

    def check(self) -> None:
        """Every slot is free, in the tree or a row's own, exactly once."""
        free = self.allocator.free_pages.tolist() + self.allocator.release_pages.tolist()
        tree = self.tree.all_values_flatten().tolist()
        own = []
        for req in self.reqs:
            held = self.rows.req_to_token[req.kv.req_pool_idx, : req.kv.kv_allocated_len].tolist()
            assert set(held[: req.kv.cache_protected_len]) <= set(tree)
            own += held[req.kv.cache_protected_len :]
        assert sorted(free + tree + own) == list(range(1, POOL + 1))


@st.composite
def prefilled_rows(draw):
    """(tokens, row, whether the tree has it): any length beside any budget, any history."""
    shared = draw(st.sampled_from([0, 0, 10, 40]))
    own = draw(st.integers(1, 60))
    tokens = [1] * shared + draw(st.lists(st.integers(0, VOCABULARY), min_size=own, max_size=own))
    if draw(st.integers(0, 4)) == 0:
        return tokens, draw(st.sampled_from([None, KVRow(KVBudget(0, STREAMING))])), True
    near = len(tokens) + draw(st.integers(-30, 30))
    row = KVRow(KVBudget(max(2, near), STREAMING), decode_steps=draw(st.integers(0, 2)))
    if draw(st.booleans()) and len(tokens) >= row.budget.tokens:  # the prefill picked, or did not
        kept = torch.arange(row.budget.tokens - 1)
        row.prompt_keep = kept.expand(LAYERS, -1).clone()
    return tokens, row, draw(st.booleans())


@pytest.fixture(autouse=True)
def active(monkeypatch):
    config = LongFlowConfig(kv_budget=0, kv_policy="streaming")
    monkeypatch.setattr(
        runtime, "_current", runtime.Runtime(config, kv_layers=KVLayers(tuple(range(LAYERS))))
    )


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(rows=st.lists(prefilled_rows(), min_size=1, max_size=6), tree=st.sampled_from(TREES))
@pytest.mark.sglang
def test_after_any_step_lengths_agree_and_no_slot_is_lost(rows, tree):
    from sglang.srt.mem_cache import allocation

    from sglang_longflow.hooks import slots

    pools = Pools(tree)
    rows = [(t, None if r is None else KVRow(**vars(r)), i) for t, r, i in rows]
    for tokens, row, in_tree in rows:
        if not pools.prefill(tokens, row, in_tree=in_tree and tree != "off"):
            return
    pools.check()
    batch = pools.batch()
    stock = allocation.alloc_for_decode_default
    for _ in range(3):
        room = pools.allocator.available_size() + pools.tree.evictable_size()
        required = slots.new_tokens_required_next_decode(
            lambda self, _: len(self.reqs), SimpleNamespace(reqs=pools.reqs, tree_cache=pools.tree)
        )
        if required > room:
            return  # SGLang retracts first
        before = [row is not None and slots.resident_row(req).lacks_pick for req, (_, row, _) in
                  zip(pools.reqs, rows, strict=True)]  # fmt: skip
        locations = slots.alloc_for_decode(stock, batch, 1)
        assert locations.shape == (len(pools.reqs),)
        for req, unpicked in zip(pools.reqs, before, strict=True):
            assert req.kv.kv_committed_len == req.kv.kv_allocated_len
            row = req.longflow_row
            if row is not None and not row.budget.is_full:
                assert req.kv.kv_allocated_len <= row.budget.tokens
                assert (req.to_finish is not None) >= unpicked
        batch.seq_lens = batch.seq_lens + 1
        pools.check()


@pytest.mark.sglang
@pytest.mark.parametrize("tree", TREES)
def test_a_row_that_cannot_be_read_ends_and_its_neighbours_go_on(monkeypatch, tree):
    from sglang.srt.mem_cache import allocation

    from sglang_longflow.hooks import slots

    pools = Pools(tree)
    for length in (20, 30, 25):
        row = KVRow(KVBudget(40, STREAMING))
        assert pools.prefill([1] * length, row, in_tree=tree != "off")
    real = slots.resident_row

    def fails(req):
        if req.rid == "r1":
            raise AttributeError("'list' object has no attribute 'items'")
        return real(req)

    monkeypatch.setattr(slots, "resident_row", fails)
    slots.alloc_for_decode(allocation.alloc_for_decode_default, pools.batch(), 1)
    assert [req.to_finish is None for req in pools.reqs] == [True, False, True]
    assert "'list' object" in pools.reqs[1].to_finish.message
    for req in pools.reqs:
        assert req.kv.kv_committed_len == req.kv.kv_allocated_len
    pools.check()
    assert runtime.current().counters.failed_hooks == 1


@pytest.mark.parametrize(
    ("row", "is_kept"),
    [
        (None, True),
        (KVRow(KVBudget(0, STREAMING)), True),
        (KVRow(KVBudget(9, STREAMING)), True),  # not full yet: its length is its sequence's
        (KVRow(KVBudget(9, STREAMING), owned=True), False),
    ],
)
def test_the_state_of_a_row_that_owns_its_slots_is_not_kept_for_the_tree(row, is_kept):
    """SGLang would end there, at every 256th token: it compares the row's length with the text."""
    from sglang_longflow.hooks.slots import mamba_prefix_cache_update

    asked = []

    def original(*args, **kwargs):
        asked.append((args, kwargs))

    req = SimpleNamespace(longflow_row=row)
    mamba_prefix_cache_update(original, "processor", req, "batch", "result", 3, known_boundary=True)
    kept = [(("processor", req, "batch", "result", 3), {"known_boundary": True})]
    assert asked == (kept if is_kept else [])
