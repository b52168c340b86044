# SPDX-License-Identifier: Apache-2.0
"""Run with a patched SGLang: a policy for rows, on its own adder, allocator and tree."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import sglang
import torch
from sglang.srt.managers.row_policy import RowPolicy, get_row_policy, set_row_policy
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.schedule_policy import AddReqResult, PrefillAdder
from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.runtime_context import publish
from sglang.srt.server_args import ServerArgs
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

SLOTS, PROMPT, OUTPUT, BUDGET = 1000, 20, 400, 100

publish(ServerArgs(model_path="dummy", device="cpu"), role="scheduler")
pool = MHATokenToKVPool(
    size=SLOTS,
    page_size=1,
    dtype=torch.float32,
    head_num=1,
    head_dim=8,
    layer_num=1,
    device="cpu",
    enable_memory_saver=False,
)
allocator = TokenToKVPoolAllocator(SLOTS, torch.float32, "cpu", pool, False)
rows = ReqToTokenPool(size=16, max_context_len=4096, device="cpu", enable_memory_saver=False)
tree = UnifiedRadixCache(
    CacheInitParams(
        disable=False,
        req_to_token_pool=rows,
        token_to_kv_pool_allocator=allocator,
        page_size=1,
        tree_components=(ComponentType.FULL,),
    )
)
core = os.environ["SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND"]
assert (
    type(tree.tree_core).__name__
    == {
        "python": "UnifiedTreeCore",
        "rust": "RustUnifiedTreeCore",
    }[core]
)


def request(rid: str = "bounded", prompt: int = PROMPT) -> Any:
    tokens = list(range(prompt))
    return SimpleNamespace(
        rid=rid,
        full_untruncated_fill_ids=tokens,
        origin_input_ids=tokens,
        output_ids=[],
        prefix_len=0,
        last_node=tree.root_node_handle(),
        host_hit_length=0,
        swa_host_hit_length=0,
        auxiliary_swa_host_hit_length=0,
        storage_hit_length=0,
        beam_group=None,
        kv=SimpleNamespace(req_pool_idx=None, holds_kv=False, kv_committed_len=prompt),
        sampling_params=SimpleNamespace(max_new_tokens=OUTPUT, ignore_eos=False),
        retracted_stain=False,
        cache_request_handle=None,
        needs_host_load_back=lambda: False,
        fulfilled_storage_hit_len=lambda prefix_len: 0,
    )


def admit(waiting: Sequence[Any], running: Sequence[Any] = (), chunk: int | None = None) -> Any:
    batch = SimpleNamespace(reqs=list(running), batch_size=lambda: len(running))
    adder = PrefillAdder(1, tree, allocator, batch, 1.0, 100_000, chunk)
    for req in waiting:
        if adder.add_one_req(req, False, None) != AddReqResult.CONTINUE:
            break
    for req in adder.can_run_list:
        tree.unlock(req.lock)
    return adder


def reserved(adder: Any) -> float:
    return adder.memory_budget.total_offset


def batch_of(reqs: Sequence[Any]) -> Any:
    batch = ScheduleBatch.__new__(ScheduleBatch)
    batch.reqs = list(reqs)
    batch.token_to_kv_pool_allocator = allocator
    batch.spec_algorithm = SpeculativeAlgorithm.NONE
    return batch


many = [request() for _ in range(16)]
assert type(get_row_policy()) is RowPolicy
assert len(admit(many).can_run_list) == 2
assert reserved(admit([], running=many[:2])) == 2 * OUTPUT
assert batch_of(many).new_tokens_required_next_decode() == 16
assert reserved(admit([request(prompt=64)], chunk=16)) == 16 + 1


class Bounded(RowPolicy):
    def decode_slots(self, req: Any, *, extend_len: int) -> int | None:
        return BUDGET - extend_len if req.rid == "bounded" else None

    def running_slots(self, reqs: Sequence[Any]) -> Sequence[int | None]:
        return [BUDGET - PROMPT if req.rid == "bounded" else None for req in reqs]

    def next_step_slots(self, reqs: Sequence[Any]) -> int | None:
        return sum(req.rid != "bounded" for req in reqs)


set_row_policy(Bounded())
try:
    set_row_policy(Bounded())
except ValueError as error:
    assert "already set" in str(error)
else:
    raise AssertionError("a second policy was taken")

many = [request() for _ in range(16)]
admitted = admit(many)
assert len(admitted.can_run_list) == 9
assert reserved(admitted) == 9 * (BUDGET + 1)  # SGLang adds a page, of one slot, to each
full = request("full")
assert reserved(admit([], running=[many[0], full])) == BUDGET - PROMPT + OUTPUT
assert batch_of([*many, full]).new_tokens_required_next_decode() == 1
chunked = admit([request(prompt=64)], chunk=16)
assert chunked.new_chunked_req is not None
assert reserved(chunked) == BUDGET + 1

print("checked", sglang.__file__)
