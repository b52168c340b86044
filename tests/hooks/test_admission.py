# SPDX-License-Identifier: Apache-2.0
"""The hooks around SGLang's real PrefillAdder. Imports SGLang (slow), inside the tests only."""

from array import array
from types import SimpleNamespace

import pytest
import torch

from real_adder import without_a_server
from real_tree import real_tree
from sglang_longflow.core import runtime
from sglang_longflow.core.contracts import KVBudget, KVRow
from sglang_longflow.policies import make_policy
from sglang_longflow.settings.config import LongFlowConfig

pytestmark = pytest.mark.sglang

LONGFLOW = make_policy("longflow")


POOL = 6000


class Pools:
    """A radix tree with hits in it over a pool of which `available` slots are free."""

    def __init__(self, core="rust"):
        from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
        from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

        self.allocator = TokenToKVPoolAllocator(POOL, torch.float32, "cpu", None, False)
        self.tree = real_tree(ReqToTokenPool(32, POOL, "cpu", False), self.allocator, core)
        self.next_token = 0

    def node(self, length, locks=0):
        """A node of `length` tokens that `locks` others hold."""
        from sglang.srt.mem_cache.base_prefix_cache import InsertParams
        from sglang.srt.mem_cache.radix_cache import RadixKey

        if length == 0:
            return self.tree.root_node_handle()
        self.next_token += 1
        key = RadixKey(array("q", [self.next_token] * length), None)
        value = self.allocator.alloc(length)
        found = self.tree.insert(InsertParams(key=key, value=value))
        for _ in range(locks):
            self.tree.lock(found.last_device_node)
        return found.last_device_node

    def leave(self, available):
        """Take slots until so many are free; below 0 there is nothing to take."""
        self.allocator.alloc(self.allocator.available_size() - max(0, available))

    def adder(self, *, available, chunk, running=()):
        from sglang_longflow.hooks.admission import BudgetAdder

        self.leave(available)
        batch = SimpleNamespace(reqs=list(running), batch_size=lambda: len(running))
        adder = BudgetAdder(
            1, self.tree, self.allocator, batch, 0.5, 10**6, chunk, prefill_max_requests=None
        )
        adder.memory_budget.total_offset += max(0, -available)
        return adder


class Request:
    """What admission reads of SGLang's ``Req``."""

    def __init__(self, prompt, max_new, budget, node, hit=0):
        from sglang.srt.managers.schedule_batch import ReqKvInfo

        self.rid = "r"
        self.full_untruncated_fill_ids = self.origin_input_ids = array("q", [0] * prompt)
        self.sampling_params = SimpleNamespace(max_new_tokens=max_new, ignore_eos=False)
        self.longflow_row = KVRow(KVBudget(budget, LONGFLOW))
        self.prefix_len, self.last_node, self.output_ids = hit, node, array("q")
        self.host_hit_length = self.swa_host_hit_length = self.mamba_host_hit_length = 0
        self.auxiliary_swa_host_hit_length = self.storage_hit_length = self.storage_hit_start = 0
        self.retracted_stain, self.extend_end, self.lock = False, None, None
        self.kv = ReqKvInfo()

    @property
    def extend_len(self):
        return self.extend_end - self.prefix_len

    def needs_host_load_back(self):
        return False


@pytest.fixture(autouse=True)
def active(monkeypatch):
    """A process with a budget; SGLang's own configuration is only there in a server."""
    without_a_server(monkeypatch)
    monkeypatch.setattr(runtime, "_current", runtime.Runtime(LongFlowConfig(kv_budget=100)))


@pytest.fixture(params=["python", "rust"])
def pools(request):
    return Pools(request.param)


def test_a_chunk_in_the_middle_leaves_no_room_in_its_batch(pools):
    adder = pools.adder(available=5000, chunk=64)
    chunked = Request(500, 10, 100, pools.node(0), hit=64)
    assert adder.add_chunked_req(chunked) is chunked
    adder.add_one_req(Request(40, 5, 100, pools.node(0)), True, None)
    assert len(adder.can_run_list) == 1
    assert adder.new_chunked_req is None


def test_a_chunk_shortened_for_the_window_leaves_no_room_for_a_second_chunked_request(pools):
    adder = pools.adder(available=5000, chunk=64)
    chunked = Request(148, 10, 100, pools.node(0), hit=64)  # 64 more would leave 20 < 32
    assert adder.add_chunked_req(chunked) is chunked
    assert chunked.extend_end == 148 - 32
    adder.add_one_req(Request(40, 5, 100, pools.node(0)), True, None)
    assert adder.new_chunked_req is None  # Scheduler: `assert self.chunked_req is None`


@pytest.mark.parametrize("available", [1, 10, 31])
def test_a_chunk_lengthened_to_the_end_of_the_prompt_is_the_last(pools, available):
    adder = pools.adder(available=available, chunk=64)
    chunked = Request(148, 10, 100, pools.node(0), hit=116)
    result = adder.add_chunked_req(chunked)
    assert chunked.extend_end == 148
    assert result is None


@pytest.mark.parametrize("available", [-5, 0, 32, 5000])
def test_a_last_chunk_that_fits_is_the_last(pools, available):
    adder = pools.adder(available=available, chunk=64)
    assert adder.add_chunked_req(Request(148, 10, 100, pools.node(0), hit=116)) is None


@pytest.mark.parametrize(("locks", "need"), [(1, 60), (2, 60)])
def test_a_keeper_reserves_hit_tokens_that_someone_else_holds(pools, locks, need):
    """The node is a part split off a credited one, or was locked earlier in this pass."""
    from sglang_longflow.hooks import admission

    req = Request(40, 20, 100, pools.node(30, locks), hit=30)
    adder = pools.adder(available=5000, chunk=512)
    assert admission._need(adder, req, req.longflow_row.budget, lock_held=False) == need


def test_embeddings_and_tokens_are_not_prefilled_in_one_batch(pools):
    """SGLang would take the embeddings of one request for those of all of its batch."""
    from sglang.srt.managers.schedule_policy import AddReqResult

    adder = pools.adder(available=5000, chunk=512)
    first, second, third = (Request(40, 5, 100, pools.node(0)) for _ in range(3))
    second.input_embeds = [[0.0]]
    adder.add_one_req(first, True, None)
    assert adder.add_one_req(second, True, None) is AddReqResult.OTHER
    adder.add_one_req(third, True, None)
    assert adder.can_run_list == [first, third]


def test_the_rest_of_a_chunked_prompt_with_full_kv_is_reserved(pools):
    """With shortest-prefill-first others join its pass, and SGLang counts its chunk alone."""
    from sglang.srt.managers.schedule_policy import AddReqResult

    adder = pools.adder(available=300, chunk=64)
    adder.chunked_req_limit = 16
    chunked = Request(280, 10, 0, pools.node(0), hit=64)  # 200 more after this chunk
    assert adder.add_chunked_req(chunked) is chunked
    shorter = Request(20, 200, 100, pools.node(0))
    assert adder.add_one_req(shorter, True, None) is AddReqResult.NO_TOKEN
    assert adder.can_run_list == [chunked]


def test_shorter_prompts_join_the_pass_of_a_long_one_with_a_budget(pools, monkeypatch):
    """With shortest-prefill-first; a prompt that would be cut into chunks has to wait."""
    without_a_server(monkeypatch, "shortest-prefill-first")
    adder = pools.adder(available=5000, chunk=64)
    adder.chunked_req_limit = 16
    chunked = Request(280, 10, 100, pools.node(0), hit=64)
    assert adder.add_chunked_req(chunked) is chunked
    shorter, longer = Request(20, 5, 100, pools.node(0)), Request(90, 5, 200, pools.node(0))
    adder.add_one_req(shorter, True, None)
    adder.add_one_req(longer, True, None)
    assert adder.can_run_list == [chunked, shorter]
    assert adder.new_chunked_req is None
