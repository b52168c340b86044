# SPDX-License-Identifier: Apache-2.0
"""Metrics, SGLang's side: the scheduler's part of GET /longflow/stats."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from sglang_longflow.core import runtime
from sglang_longflow.core.counters import row_capacity, unplanned_rows
from sglang_longflow.hooks.metrics import row_stats
from sglang_longflow.hooks.request import bounded_row
from sglang_longflow.hooks.sglang_types import Original, Req, Scheduler

#: The request id of our own question. SGLang's answer dumps every server argument first, which
#: takes a millisecond on a busy CPU, and nobody reads it there.
OUR_QUESTION = "longflow"
#: Waiting requests that are described; the others are only counted.
QUEUE_SHOWN = 20


def get_internal_state(original: Original, self: Scheduler, recv_req: Any) -> Any:
    """Around ``Scheduler.get_internal_state``: adds the key ``longflow``."""
    state = runtime.current()
    if state is None:
        return original(self, recv_req)
    if recv_req.rid == OUR_QUESTION:
        from sglang.srt.managers.io_struct import GetInternalStateReqOutput

        return GetInternalStateReqOutput(internal_state={"longflow": snapshot(self, state)})
    answer = original(self, recv_req)
    answer.internal_state["longflow"] = snapshot(self, state)
    return answer


def snapshot(scheduler: Scheduler, state: runtime.Runtime) -> dict[str, Any]:
    """Lengths and owners, no text; `monitor.snapshots.merge` makes the answer of it.

    The scheduler does nothing else meanwhile: names and sums are left to the HTTP process.
    """
    live = [r for r in scheduler.running_batch.reqs if r.kv.holds_kv and not r.finished()]
    tree, allocator = scheduler.tree_cache, scheduler.token_to_kv_pool_allocator
    if state.settings is None:
        state.settings = _settings(scheduler, state)
    return {
        "settings": state.settings,
        "pool": {
            "total_tokens": scheduler.max_total_num_tokens,
            "available_tokens": allocator.available_size(),
            "evictable_tokens": tree.evictable_size(),
        },
        "tree_held_tokens": tree.protected_size(),
        "requests": [row_stats(req) for req in live],
        "prefilling": [_prefilling(req) for req in _in_prefill(scheduler, live)],
        "counters": asdict(state.counters),
        "queued_requests": len(scheduler.waiting_queue),
        "queue": [_waiting(req) for req in scheduler.waiting_queue[:QUEUE_SHOWN]],
        "paused": scheduler._engine_paused,
        "stalled_s": round(state.stall.seconds(time.monotonic()), 1),
        "uptime_s": round(time.monotonic() - state.started, 3),
    }


def _in_prefill(scheduler: Scheduler, live: list[Req]) -> list[Req]:
    """Requests that hold slots and do not decode yet."""
    last = scheduler.last_batch
    found = last.reqs if last is not None and last.forward_mode.is_extend() else []
    found = {id(req): req for req in [*found, scheduler.chunked_req] if req is not None}
    known = {id(req) for req in live}
    return [r for i, r in found.items() if i not in known and r.kv.holds_kv and not r.finished()]


def _prefilling(req: Req) -> dict[str, Any]:
    own = req.kv.kv_allocated_len - req.kv.cache_protected_len
    return {"rid": req.rid, "prompt_tokens": len(req.origin_input_ids), "own_tokens": own}


def _waiting(req: Req) -> dict[str, Any]:
    row, since = bounded_row(req), req.time_stats.wait_queue_entry_time
    return {
        "rid": req.rid,
        "prompt_tokens": len(req.origin_input_ids),
        "max_new_tokens": req.sampling_params.max_new_tokens,
        "kv_budget": row.budget.tokens if row else 0,
        "waited_s": round(time.perf_counter() - since, 1) if since else 0.0,
    }


def rows_that_fit(scheduler: Scheduler, kv_budget: int) -> int | None:
    """Requests that memory holds at the default budget; None if that is full KV.

    Of a hybrid model their recurrent states must fit too: SGLang runs no more than these.
    """
    is_hybrid = getattr(scheduler.req_to_token_pool, "mamba_pool", None) is not None
    states = scheduler.max_running_requests if is_hybrid else None
    return row_capacity(scheduler.max_total_num_tokens, kv_budget, states)


def _settings(scheduler: Scheduler, state: runtime.Runtime) -> dict[str, Any]:
    runner, config = scheduler.tp_worker.model_runner, state.config
    kv_pool = scheduler.token_to_kv_pool_allocator.get_kvcache()
    device_name, device_memory_bytes = str(runner.device), None
    fits = rows_that_fit(scheduler, config.kv_budget)
    if device_name.startswith("cuda"):
        import torch

        card = torch.cuda.get_device_properties(runner.gpu_id)
        device_name, device_memory_bytes = card.name, card.total_memory
    return {
        **config.as_dict(),
        "kv_budget_min": config.kv_budget_min or config.policy().min_budget_tokens,
        "kv_policies_allowed": list(config.policies_allowed),
        "overlap_schedule": scheduler.enable_overlap,
        "radix_cache": not scheduler.tree_cache.disable,
        "decode_cuda_graph": type(runner.decode_cuda_graph_runner).__name__
        == "DecodeCudaGraphRunner",
        "device_state_bytes": state.device_state_bytes,
        "l2_set_aside_bytes": state.l2_set_aside_bytes,
        "kv_pool_bytes": int(sum(kv_pool.get_kv_size_bytes())),
        "capacity_warning": unplanned_rows(config.kv_planned_rows, fits),
        "max_running_requests": scheduler.max_running_requests,
        "max_queued_requests": scheduler.max_queued_requests,
        "device_name": device_name,
        "device_memory_bytes": device_memory_bytes,
        # Counted: SGLang's own number is a difference of free memory, which others use too.
        "weights_bytes": sum(tensor.nbytes for tensor in runner.model.parameters()),
    }
