# SPDX-License-Identifier: Apache-2.0
"""``alloc_for_decode`` over SGLang's real allocator, row table and radix tree, on any row.

Whatever it is given: afterwards committed equals allocated, no row is over its budget, and every
slot is free, the tree's or one row's. Imports SGLang (slow), inside the tests only.
"""

import inspect
from array import array
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang_longflow.core import runtime
from sglang_longflow.core.contracts import KVBudget, KVRow
from sglang_longflow.policies import make_policy
from sglang_longflow.settings.config import LongFlowConfig

pytestmark = pytest.mark.sglang

POOL, LAYERS, VOCABULARY = 600, 2, 3
STREAMING = make_policy("streaming")


class Request:
    """What the hook and the tree read of SGLang's ``Req``."""

    def __init__(self, rid, tokens, row):
        self.rid, self.longflow_row = rid, row
        self.origin_input_ids = self.full_untruncated_fill_ids = array("q", tokens)
        self.output_ids, self.extra_key = array("q"), None
        self.extend_range = SimpleNamespace(end=len(tokens))
        self.cache_protected_len, self.last_node = 0, None
        self.prefix_indices = torch.empty(0, dtype=torch.int64)
        self.skip_radix_cache_insert, self.to_finish, self.req_pool_idx = False, None, None
        self.kv_committed_len = len(tokens)
        self.kv = SimpleNamespace(kv_allocated_len=len(tokens))
        self.sampling_params = SimpleNamespace(max_new_tokens=1000)

    def get_fill_ids(self):
        return self.full_untruncated_fill_ids[: self.extend_range.end]

    def finished(self):
        return False


class Pools:
    """A prefilled batch in real pools."""

    def __init__(self, *, radix: bool):
        from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
        from sglang.srt.mem_cache.cache_init_params import CacheInitParams
        from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
        from sglang.srt.mem_cache.radix_cache import RadixCache

        self.rows = ReqToTokenPool(32, POOL, "cpu", False)
        self.allocator = TokenToKVPoolAllocator(POOL, torch.float32, "cpu", None, False)
        self.tree = RadixCache(CacheInitParams(not radix, self.rows, self.allocator, 1))
        self.reqs = []

    def prefill(self, tokens, row, *, in_tree: bool) -> bool:
        """Add a request after its prefill; False where it does not fit."""
        slots = self.allocator.alloc(len(tokens))
        if slots is None:
            return False
        req = Request(f"r{len(self.reqs)}", tokens, row)
        self.rows.alloc([req])
        self.rows.write((req.req_pool_idx, slice(0, len(tokens))), slots.to(torch.int32))
        req.last_node = self.tree.root_node
        if in_tree:
            self.tree.cache_unfinished_req(req)
        self.reqs.append(req)
        return True

    def batch(self):
        lengths = [len(req.origin_input_ids) for req in self.reqs]
        return SimpleNamespace(
            reqs=self.reqs,
            tree_cache=self.tree,
            token_to_kv_pool_allocator=self.allocator,
            req_to_token_pool=self.rows,
            req_pool_indices=torch.tensor([req.req_pool_idx for req in self.reqs]),
            seq_lens=torch.tensor(lengths),
            seq_lens_cpu=torch.tensor(lengths),
            device="cpu",
            batch_is_full=True,
            model_config=SimpleNamespace(num_hidden_layers=LAYERS, is_encoder_decoder=False),
            maybe_evict_swa=lambda: None,
        )

    def check(self) -> None:
        """Every slot is free, in the tree or a row's own, exactly once."""
        free = self.allocator.free_pages.tolist() + self.allocator.release_pages.tolist()
        tree, stack = [], [self.tree.root_node]
        while stack:
            node = stack.pop()
            tree += [] if isinstance(node.value, list) else node.value.tolist()
            stack.extend(node.children.values())
        own = []
        for req in self.reqs:
            held = self.rows.req_to_token[req.req_pool_idx, : req.kv.kv_allocated_len].tolist()
            assert set(held[: req.cache_protected_len]) <= set(tree)
            own += held[req.cache_protected_len :]
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
    monkeypatch.setattr(runtime, "_current", runtime.Runtime(config))


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(rows=st.lists(prefilled_rows(), min_size=1, max_size=6), radix=st.booleans())
@pytest.mark.sglang
def test_after_any_step_lengths_agree_and_no_slot_is_lost(rows, radix):
    from sglang.srt.mem_cache import allocation

    from sglang_longflow.hooks import slots

    pools = Pools(radix=radix)
    rows = [(t, None if r is None else KVRow(**vars(r)), i) for t, r, i in rows]
    for tokens, row, in_tree in rows:
        if not pools.prefill(tokens, row, in_tree=in_tree and radix):
            return
    pools.check()
    batch = pools.batch()
    stock = inspect.unwrap(allocation.alloc_for_decode)
    for _ in range(3):
        room = pools.allocator.available_size() + pools.tree.evictable_size()
        required = slots.new_tokens_required_next_decode(
            lambda self, _: len(self.reqs), SimpleNamespace(reqs=pools.reqs)
        )
        if required > room:
            return  # SGLang retracts first
        before = [row is not None and slots.resident_row(req).lacks_pick for req, (_, row, _) in
                  zip(pools.reqs, rows, strict=True)]  # fmt: skip
        locations = slots.alloc_for_decode(stock, batch, 1)
        assert locations.shape == (len(pools.reqs),)
        for req, unpicked in zip(pools.reqs, before, strict=True):
            req.kv_committed_len += 1  # as SGLang does after this call
            assert req.kv_committed_len == req.kv.kv_allocated_len
            row = req.longflow_row
            if row is not None and not row.budget.is_full:
                assert req.kv.kv_allocated_len <= row.budget.tokens
                assert (req.to_finish is not None) >= unpicked
        batch.seq_lens = batch.seq_lens + 1
        pools.check()


@pytest.mark.sglang
def test_a_row_that_cannot_be_read_ends_and_its_neighbours_go_on(monkeypatch):
    from sglang.srt.mem_cache import allocation

    from sglang_longflow.hooks import slots

    pools = Pools(radix=True)
    for length in (20, 30, 25):
        row = KVRow(KVBudget(40, STREAMING))
        assert pools.prefill([1] * length, row, in_tree=True)
    real = slots.resident_row

    def fails(req):
        if req.rid == "r1":
            raise AttributeError("'list' object has no attribute 'items'")
        return real(req)

    monkeypatch.setattr(slots, "resident_row", fails)
    slots.alloc_for_decode(inspect.unwrap(allocation.alloc_for_decode), pools.batch(), 1)
    assert [req.to_finish is None for req in pools.reqs] == [True, False, True]
    assert "'list' object" in pools.reqs[1].to_finish.message
    for req in pools.reqs:
        assert req.kv_committed_len + 1 == req.kv.kv_allocated_len
    pools.check()
    assert runtime.current().counters.failed_hooks == 1
