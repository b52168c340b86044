# SPDX-License-Identifier: Apache-2.0
"""The hooks around SGLang's real PrefillAdder. Imports SGLang (slow), inside the tests only."""

import inspect
from types import SimpleNamespace

import pytest

from sglang_longflow.core import runtime
from sglang_longflow.core.contracts import KVBudget, KVRow
from sglang_longflow.policies import make_policy
from sglang_longflow.settings.config import LongFlowConfig

pytestmark = pytest.mark.sglang

LONGFLOW = make_policy("longflow")


class Node:
    def __init__(self, length, parent=None, locks=0):
        self.key, self.parent, self.lock_ref = [0] * length, parent, locks


class Tree:
    def __init__(self):
        self.root_node = Node(0, locks=1)
        self.disable = False

    def evictable_size(self):
        return 0

    def supports_mamba(self):
        return False

    def is_tree_cache(self):
        return False

    def inc_lock_ref(self, node):
        while node.parent is not None:
            node.lock_ref += 1
            node = node.parent

    def dec_lock_ref(self, node):
        while node.parent is not None:
            node.lock_ref -= 1
            node = node.parent


class Request:
    def __init__(self, prompt, max_new, budget, node, hit=0):
        self.full_untruncated_fill_ids = self.origin_input_ids = [0] * prompt
        self.sampling_params = SimpleNamespace(max_new_tokens=max_new, ignore_eos=False)
        self.longflow_row = KVRow(KVBudget(budget, LONGFLOW))
        self.prefix_indices, self.last_node, self.output_ids = [0] * hit, node, []
        self.host_hit_length, self.retracted_stain, self.mamba_pool_idx = 0, False, None
        self.extend_range = None

    def needs_host_load_back(self):
        return False

    def set_extend_range(self, start, end):
        from sglang_longflow.hooks import prompt

        def original(req, start, end):
            req.extend_range = SimpleNamespace(start=start, end=end, length=end - start)

        prompt.set_extend_range(original, self, start, end)


@pytest.fixture(autouse=True)
def no_context_parallelism(monkeypatch):
    """SGLang's process-wide configuration is only there in a server."""
    from sglang.srt.managers import schedule_policy

    for name in ("is_dsa_prefill_cp_in_seq_split", "is_prefill_context_parallel_enabled"):
        monkeypatch.setattr(schedule_policy, name, lambda: False)


def make_adder(tree, *, available, chunk, running=()):
    from sglang.srt.managers.schedule_policy import PrefillAdder

    allocator = SimpleNamespace(available_size=lambda: available)
    batch = SimpleNamespace(reqs=list(running), batch_size=lambda: len(running))
    adder = object.__new__(PrefillAdder)
    inspect.unwrap(PrefillAdder.__init__)(
        adder, 1, tree, allocator, batch, 0.5, 10**6, chunk, prefill_max_requests=None
    )
    return adder


def add_chunked(adder, req):
    from sglang.srt.managers.schedule_policy import PrefillAdder

    from sglang_longflow.hooks import admission

    return admission.add_chunked_req(inspect.unwrap(PrefillAdder.add_chunked_req), adder, req)


def add_one(adder, req):
    from sglang.srt.managers.schedule_policy import PrefillAdder

    from sglang_longflow.hooks import admission

    original = inspect.unwrap(PrefillAdder.add_one_req)
    return admission.add_one_req(original, adder, req, True, None)


def test_a_chunk_in_the_middle_leaves_no_room_in_its_batch():
    tree = Tree()
    adder = make_adder(tree, available=5000, chunk=64)
    chunked = Request(500, 10, 100, tree.root_node, hit=64)
    assert add_chunked(adder, chunked) is chunked
    add_one(adder, Request(40, 5, 100, tree.root_node))
    assert len(adder.can_run_list) == 1
    assert adder.new_chunked_req is None


def test_a_chunk_shortened_for_the_window_leaves_no_room_for_a_second_chunked_request():
    tree = Tree()
    adder = make_adder(tree, available=5000, chunk=64)
    chunked = Request(148, 10, 100, tree.root_node, hit=64)  # 64 more would leave 20 < 32
    assert add_chunked(adder, chunked) is chunked
    assert chunked.extend_range.end == 148 - 32
    add_one(adder, Request(40, 5, 100, tree.root_node))
    assert adder.new_chunked_req is None  # Scheduler: `assert self.chunked_req is None`


@pytest.mark.parametrize("available", [1, 10, 31])
def test_a_chunk_lengthened_to_the_end_of_the_prompt_is_the_last(available):
    tree = Tree()
    adder = make_adder(tree, available=available, chunk=64)
    chunked = Request(148, 10, 100, tree.root_node, hit=116)
    result = add_chunked(adder, chunked)
    assert chunked.extend_range.end == 148
    assert result is None


@pytest.mark.parametrize("available", [-5, 0, 32, 5000])
def test_a_last_chunk_that_fits_is_the_last(available):
    tree = Tree()
    adder = make_adder(tree, available=available, chunk=64)
    assert add_chunked(adder, Request(148, 10, 100, tree.root_node, hit=116)) is None


@pytest.mark.parametrize(("locks", "need"), [(1, 60), (2, 60)])
def test_a_keeper_reserves_hit_tokens_that_someone_else_holds(locks, need):
    """The node is a part split off a credited one, or was locked earlier in this pass."""
    from sglang_longflow.hooks import admission

    tree = Tree()
    req = Request(40, 20, 100, Node(30, tree.root_node, locks), hit=30)
    assert admission._need(req, req.longflow_row.budget, lock_held=False) == need


def test_embeddings_and_tokens_are_not_prefilled_in_one_batch(monkeypatch):
    """SGLang would take the embeddings of one request for those of all of its batch."""
    from sglang.srt.managers.schedule_policy import AddReqResult

    monkeypatch.setattr(runtime, "_current", runtime.Runtime(LongFlowConfig(kv_budget=100)))
    tree = Tree()
    adder = make_adder(tree, available=5000, chunk=512)
    first, second, third = (Request(40, 5, 100, tree.root_node) for _ in range(3))
    second.input_embeds = [[0.0]]
    add_one(adder, first)
    assert add_one(adder, second) is AddReqResult.OTHER
    add_one(adder, third)
    assert adder.can_run_list == [first, third]
