# SPDX-License-Identifier: Apache-2.0
"""A scheduler that checks itself after every step; runs in the scheduler's process.

It looks at the real pools, rows and radix tree, independent of the plugin's own bookkeeping, and
stops the scheduler (so the test fails) at the first violation.
"""

from __future__ import annotations

import functools
import json
import os
import warnings
from pathlib import Path

import torch
from sglang.srt.runtime_context import get_parallel

import quick_interpreter


def count_synchronisations(call) -> tuple[object, list[str]]:
    """(what `call` returns, file and line of every wait for the GPU that PyTorch saw in it)."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [w for w in caught if "synchroniz" in str(w.message)]
    return result, [f"{w.filename}:{w.lineno}" for w in found]


class Probe:
    """Checks and peaks; written to LONGFLOW_PROBE_FILE whenever the scheduler idles."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.file = Path(os.environ["LONGFLOW_PROBE_FILE"])
        self.reports = get_parallel().tp_rank == 0  # every rank checks itself
        self.tree_sums: dict[int, torch.Tensor] = {}
        self.reset()
        # A slot may leave the tree, be taken by another row and come back, all in one step.
        allocator = scheduler.token_to_kv_pool_allocator
        stock_alloc = allocator.alloc

        def alloc(*args, **kwargs):
            slots = stock_alloc(*args, **kwargs)
            for slot in [] if slots is None else slots.tolist():
                self.tree_sums.pop(slot, None)
            return slots

        allocator.alloc = alloc

    def reset(self) -> None:
        self.report = {
            "steps": 0,
            "peak_running": 0,
            "peak_full_rows": 0,
            "retractions": 0,
            "tree_slots_checked": 0,
            "overlap": self.scheduler.enable_overlap,
            "radix": not self.scheduler.tree_cache.disable,
            "peak_used_slots": 0,
            "decode_steps": 0,
            "graph_steps": 0,
            "synchronisations": {},
            "trace": {},
        }

    def _reset_if_asked(self) -> None:
        asked = self.file.with_suffix(".reset")
        if self.reports and asked.exists():
            self.reset()
            asked.unlink()

    def _live(self):
        batches = [self.scheduler.running_batch, self.scheduler.last_batch]
        reqs = {id(r): r for batch in batches if batch is not None for r in batch.reqs}
        return [r for r in reqs.values() if r.kv.holds_kv]

    def _tree_slots(self) -> list[int]:
        if self.scheduler.tree_cache.disable:
            return []
        return self.scheduler.tree_cache.all_values_flatten().tolist()

    def _bytes_of(self, slots: list[int]) -> torch.Tensor:
        """[len(slots)] one number a slot that changes when any K or V byte of any layer does."""
        pool = self.scheduler.token_to_kv_pool_allocator.get_kvcache()
        pool = getattr(pool, "full_kv_pool", pool)  # of a model with recurrent layers
        index = torch.tensor(slots, device=pool.k_buffer[0].device)
        total = torch.zeros(len(slots), dtype=torch.float64, device=index.device)
        for layer in range(pool.layer_num):
            for factor, buffer in ((1.0, pool.k_buffer[layer]), (1.7, pool.v_buffer[layer])):
                values = buffer[index].double().flatten(1)
                weights = torch.arange(1, values.shape[1] + 1, device=index.device).double()
                total += factor * (layer + 1) * (values * weights).sum(dim=1)
        return total.cpu()

    def _trace(self) -> None:
        """Record what every row decided on the device: its cut and its victims."""
        backend = self.scheduler.tp_worker.model_runner.attn_backend
        state = getattr(backend, "full_attn_backend", backend).state
        for req in self._live():
            row = getattr(req, "longflow_row", None)
            if row is None or row.budget.is_full:
                continue
            entry = self.report["trace"].setdefault(req.rid, {"victims": {}, "keep": None})
            if row.prompt_keep is not None:
                entry["keep"] = row.prompt_keep.tolist()
            elif req.kv.kv_allocated_len == row.budget.tokens:
                victims = state.next_slot[:, req.kv.req_pool_idx, 0].tolist()
                entry["victims"][row.overwritten_tokens] = victims

    def watch(self, call):
        """Run one decode step, and count graphs and waits for the GPU."""
        result, places = count_synchronisations(call)
        self.report["decode_steps"] += 1
        self.report["graph_steps"] += bool(result.can_run_cuda_graph)
        for place in places:
            seen = self.report["synchronisations"]
            seen[place] = seen.get(place, 0) + 1
        return result

    def check(self) -> None:
        scheduler = self.scheduler
        self._reset_if_asked()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if os.environ.get("LONGFLOW_PROBE_TRACE"):
            self._trace()
        allocator = scheduler.token_to_kv_pool_allocator
        pools = (allocator.free_pages, allocator.release_pages)
        free = {slot for pages in pools if pages is not None for slot in pages.tolist()}
        tree = self._tree_slots()
        tree_set = set(tree)
        assert len(tree_set) == len(tree), "a slot is twice in the radix tree"
        assert not tree_set & free, "a slot of the radix tree is free"
        owned: set[int] = set()
        full_rows = 0
        reqs = self._live()
        for req in reqs:
            row = getattr(req, "longflow_row", None)
            slots = scheduler.req_to_token_pool.req_to_token[
                req.kv.req_pool_idx, : req.kv.kv_allocated_len
            ].tolist()
            assert len(set(slots)) == len(slots), f"{req.rid}: a slot is twice in its row"
            assert not set(slots) & free, f"{req.rid}: holds a free slot"
            mine = set(slots[req.kv.cache_protected_len :])
            assert not mine & owned, f"{req.rid}: shares an own slot with another row"
            owned |= mine
            if row is None or row.budget.is_full:
                continue
            decoding = row.owned or row.overwritten_tokens
            if decoding:
                assert len(slots) == row.budget.tokens, f"{req.rid}: row of {len(slots)}"
                assert not set(slots) & tree_set, f"{req.rid}: overwrites a shared slot"
                full_rows += 1
            prompt = len(req.full_untruncated_fill_ids)
            assert len(slots) <= max(row.budget.tokens, prompt), f"{req.rid}: over its budget"
        total = scheduler.max_total_num_tokens
        chunked = scheduler.chunked_req
        if chunked is None:
            held = len(free) + len(tree_set) + len(owned - tree_set)
            assert held == total, f"{held} slots accounted for, the pool has {total}"
        if tree:
            sums = dict(zip(tree, self._bytes_of(tree), strict=True))
            for slot, value in sums.items():
                old = self.tree_sums.get(slot)
                assert old is None or torch.equal(old, value), f"tree slot {slot} was written"
            self.tree_sums = sums
            self.report["tree_slots_checked"] += len(sums)
        else:
            self.tree_sums = {}
        report = self.report
        report["steps"] += 1
        report["peak_running"] = max(report["peak_running"], len(scheduler.running_batch.reqs))
        report["peak_full_rows"] = max(report["peak_full_rows"], full_rows)
        report["peak_used_slots"] = max(report["peak_used_slots"], total - len(free))

    def _states(self) -> tuple[list[int], list[int], int]:
        """(free, in the tree, all) slots of recurrent states; nothing where a model has none."""
        allocator = getattr(self.scheduler.req_to_token_pool, "mamba_allocator", None)
        if allocator is None:
            return [], [], 0
        tree = self.scheduler.tree_cache
        has_states = not tree.disable and tree.supports_mamba()
        kept = tree.all_mamba_values_flatten().tolist() if has_states else []
        return allocator.free_slots.tolist(), kept, allocator.size

    def check_states(self) -> None:
        """Every request has a state of its own, and every slot of the pool is somebody's."""
        free, tree, total = self._states()
        if not total:
            return
        assert len(set(free)) == len(free) and len(set(tree)) == len(tree)
        assert not set(free) & set(tree), "a state of the radix tree is free"
        owned: set[int] = set()
        for req in self._live():
            mine = [] if req.kv.mamba_pool_idx is None else [int(req.kv.mamba_pool_idx)]
            track = req.kv.mamba_ping_pong_track_buffer
            if track is not None:
                taken = zip(track.tolist(), req.kv.mamba_ping_pong_empty, strict=True)
                mine += [slot for slot, empty in taken if not empty]
            assert len(set(mine)) == len(mine), f"{req.rid}: a state is twice in its row"
            assert not set(mine) & owned, f"{req.rid}: shares a state with another row"
            assert not set(mine) & (set(free) | set(tree)), f"{req.rid}: holds a foreign state"
            owned |= set(mine)
        if self.scheduler.chunked_req is None:
            held = len(free) + len(tree) + len(owned)
            assert held == total, f"{held} states accounted for, the pool has {total}"

    def write(self) -> None:
        if not self.reports:
            return
        self._reset_if_asked()
        tree = self.scheduler.tree_cache
        self.report["idle_available"] = self.scheduler.token_to_kv_pool_allocator.available_size()
        self.report["idle_evictable"] = 0 if tree.disable else tree.evictable_size()
        self.report["idle_protected"] = 0 if tree.disable else tree.protected_size()
        free, kept, states = self._states()
        self.report |= {"free_states": len(free), "idle_states": len(free) + len(kept)}
        self.report["total_states"] = states
        self.report["total"] = self.scheduler.max_total_num_tokens
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.report))
        temporary.replace(self.file)


def _beside_others(server_args, port_args, gpu_id: int, tp_rank: int, *more) -> tuple:
    """A scheduler's arguments, for a rank that shares the first GPU with the other ranks.

    NCCL refuses two ranks of one host on one GPU, so each rank says that it is a host of its own,
    and they talk over the loopback interface.
    """
    os.environ.update(NCCL_HOSTID=f"rank{tp_rank}", NCCL_SOCKET_IFNAME="lo", NCCL_IB_DISABLE="1")
    return server_args, port_args, 0, tp_rank, *more


def run_scheduler_process(*args, **kwargs):
    """SGLang's entry point of a scheduler process, with the probe attached."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        quick_interpreter.install()
    if os.environ.get("LONGFLOW_PROBE_ONE_GPU"):
        args = _beside_others(*args)
    from sglang.srt.managers import scheduler as module
    from sglang.srt.managers.scheduler_components import invariant_checker
    from sglang.srt.plugins import load_plugins

    load_plugins()
    probes: list[Probe] = []
    stock_init = module.Scheduler.__init__
    stock_busy = invariant_checker.SchedulerInvariantChecker.self_check_during_busy
    stock_idle = module.Scheduler.on_idle
    stock_run = module.Scheduler.run_batch
    stock_retract = module.ScheduleBatch.retract_decode

    @functools.wraps(stock_init)  # hooks.verify looks through wrappers
    def init(self, *a, **k):
        stock_init(self, *a, **k)
        probes.append(Probe(self))

    @functools.wraps(stock_busy)  # hooks.verify looks through wrappers
    def busy(self):
        stock_busy(self)
        if self.get_last_batch() is not None:
            probes[0].check()
            probes[0].check_states()

    @functools.wraps(stock_idle)  # hooks.verify looks through wrappers
    def idle(self):
        stock_idle(self)
        if self.is_fully_idle():
            probes[0].write()

    @functools.wraps(stock_retract)  # hooks.verify looks through wrappers
    def retract(self, *a, **k):
        result = stock_retract(self, *a, **k)
        probes[0].report["retractions"] += len(result[0]) + len(result[2])
        return result

    @functools.wraps(stock_run)  # hooks.verify looks through wrappers
    def run(self, batch, *a, **k):
        if os.environ.get("LONGFLOW_PROBE_SYNCS") and batch.forward_mode.is_decode():
            return probes[0].watch(lambda: stock_run(self, batch, *a, **k))
        return stock_run(self, batch, *a, **k)

    module.Scheduler.__init__ = init
    module.Scheduler.run_batch = run
    module.Scheduler.on_idle = idle
    module.ScheduleBatch.retract_decode = retract
    invariant_checker.SchedulerInvariantChecker.self_check_during_busy = busy
    return module.run_scheduler_process(*args, **kwargs)
