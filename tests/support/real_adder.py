# SPDX-License-Identifier: Apache-2.0
"""SGLang's real admission pass, without a server: over real pools, or over the simulated one.

Imports SGLang (slow), inside the functions only.
"""

from __future__ import annotations

from types import SimpleNamespace

from node_tree import freed
from pool_simulation import Request, Simulation
from sglang_longflow.core.prompt import max_prefix_tokens
from sglang_longflow.core.slots import slots_required


def without_a_server(monkeypatch, schedule_policy_name: str = "fcfs") -> None:
    """What ``PrefillAdder`` reads of the server's configuration, and its counts of hits."""
    from sglang.srt.managers import schedule_policy

    adder = schedule_policy.PrefillAdder
    monkeypatch.setattr(adder, "_replay_len", lambda self, req, n: 0)
    monkeypatch.setattr(adder, "_account_prefill_cache_admission", lambda self, req, n: None)
    policy = SimpleNamespace(schedule_policy=schedule_policy_name)
    monkeypatch.setattr(schedule_policy, "get_schedule", lambda: policy)


class _Req:
    """A simulated request as admission reads and writes SGLang's ``Req``."""

    rid = "simulated"
    host_hit_length = swa_host_hit_length = mamba_host_hit_length = 0
    auxiliary_swa_host_hit_length = 0
    retracted_stain = False

    def __init__(self, simulated: Request, ignore_eos: bool):
        self.simulated = simulated
        self.full_untruncated_fill_ids = self.origin_input_ids = simulated.prompt
        self.output_ids = range(simulated.outputs)
        self.sampling_params = SimpleNamespace(
            max_new_tokens=simulated.max_new, ignore_eos=ignore_eos
        )
        self.prefix_len, self.extend_end = simulated.start, None
        self.last_node = simulated.last_node
        self.lock = _lock(simulated.last_node)
        self.longflow_row = SimpleNamespace(
            budget=simulated.budget,
            owned=simulated.owned,
            prompt_keep=() if simulated.must_cut else None,
            decode_steps=simulated.decode_steps,
        )
        held = len(simulated.slots)
        self.kv = SimpleNamespace(
            holds_kv=held > 0,
            holds_mamba=False,
            req_pool_idx=None,
            kv_committed_len=held,
            kv_allocated_len=held,
            cache_protected_len=simulated.tree_slots,
        )

    @property
    def extend_len(self):
        return self.extend_end - self.prefix_len

    def finished(self):
        return self.simulated.finished

    def needs_host_load_back(self):
        return False


def _lock(node, skipped=()):
    """As SGLang's ``TreeLock``: of no component but the full layers'."""
    return SimpleNamespace(node=node, receipt=SimpleNamespace(skipped_lock_components=skipped))


class _Tree:
    """The simulation's tree with the methods of ``UnifiedRadixCache``."""

    buffer_pipeline = None

    def __init__(self, simulation: Simulation):
        self.tree, self.disable = simulation.tree, not simulation.radix

    def lock(self, node, skipped=()):
        self.tree.lock(node, +1)
        return _lock(node, skipped)

    def unlock(self, lock):
        self.tree.lock(lock.node, -1)

    def evictable_size(self):
        return self.tree.evictable()

    def supports_mamba(self):
        return False


class _Allocator:
    """The simulation's free slots, with SGLang's own budget of a prefill pass."""

    page_size = 1

    def __init__(self, free):
        self.free = free

    def available_size(self):
        return len(self.free)

    def create_prefill_budget(self, tree_cache, *, num_mixed_decode_tokens):
        from sglang.srt.mem_cache.prefill_budget import PrefillBudget

        return PrefillBudget(self, tree_cache, num_mixed_decode_tokens=num_mixed_decode_tokens)

    def request_slot_reserve(self, **_):
        return 0


class AdderSimulation(Simulation):
    """The simulation whose admission is `BudgetAdder`, on SGLang's own ``PrefillAdder``.

    Requests with full KV may be among them. SGLang admits those by an estimate, so the decode check
    may retract them; a row with a budget, never.

    Attributes
    ----------
    boldness : float
        What SGLang expects a request with full KV to use of its ``max_new_tokens``.
    ignore_eos : bool
        What requests say; with the radix cache off SGLang admits them in another way.
    shortest_first : bool
        ``--schedule-policy shortest-prefill-first``: a chunk leaves room for shorter prompts.
    """

    boldness = 1.0
    ignore_eos = False
    shortest_first = False

    def prefill_pass(self):
        """``Scheduler._get_new_batch_prefill_raw``."""
        from sglang.srt.managers.schedule_policy import AddReqResult

        from sglang_longflow.hooks.admission import BudgetAdder

        reqs = [_Req(r, self.ignore_eos) for r in self.running]
        batch = SimpleNamespace(reqs=reqs, batch_size=lambda: len(reqs))
        adder = BudgetAdder(
            1, _Tree(self), _Allocator(self.free), batch, self.boldness, 10**6, self.chunk
        )
        chunked = None
        if self.shortest_first:
            self.waiting.sort(key=lambda r: len(r.prompt))
        if self.chunked is not None:
            self.chunked.start = self.chunked.end
            chunked = _Req(self.chunked, self.ignore_eos)
            if self.shortest_first:
                adder.chunked_req_limit = self.chunk_limit(chunked)
                self.counts["limited chunks"] += adder.chunked_req_limit is not None
            chunked = adder.add_chunked_req(chunked)
            self.counts["chunks"] += 1
        for r in list(self.waiting):
            if adder.budget_state() is AddReqResult.OTHER:
                break
            limit = max_prefix_tokens(len(r.prompt) - 1, len(r.prompt), r.window)
            hit, node = self.tree.match(r.prompt[:limit]) if self.radix else ([], self.tree.root)
            r.start, r.last_node = len(hit), node
            req = _Req(r, self.ignore_eos)
            result = adder.add_one_req(
                req, has_chunked_req=chunked is not None, truncation_align_size=None
            )
            if adder.can_run_list and adder.can_run_list[-1] is req:
                self.waiting.remove(r)
                r.slots, r.tree_slots = list(hit), len(hit)
                self.counts["hit"] += bool(hit)
                self.counts["full KV"] += r.budget.is_full
            if result is not AddReqResult.CONTINUE:
                break
        if adder.new_chunked_req is not None:
            assert chunked is None, "two chunked requests: SGLang's scheduler asserts"
            chunked = adder.new_chunked_req
        for req in adder.can_run_list:
            req.simulated.end = req.extend_end
            assert req.extend_end > req.prefix_len, "an empty chunk"
            ends_later = req.extend_end < len(req.simulated.prompt)
            assert ends_later == (req is chunked), "SGLang expects one more chunk, or one less"
        return [req.simulated for req in adder.can_run_list]

    def chunk_limit(self, chunked):
        from sglang.srt.managers.schedule_policy import CacheAwarePolicy, SchedulePolicy

        policy = SimpleNamespace(
            policy=CacheAwarePolicy.SHORTEST_PREFILL_FIRST,
            _shortest_prefill_work=lambda req: len(req.full_untruncated_fill_ids),
        )
        waiting = [_Req(r, self.ignore_eos) for r in self.waiting]
        return SchedulePolicy.shortest_prefill_chunk_limit(policy, chunked, waiting, self.chunk, 1)

    def make_room(self, rows):
        while slots_required([r.resident_row() for r in rows], freed) > self.room():
            if len(rows) < len(self.running):
                return []  # rows that end give their slots back first
            full = [r for r in rows if r.budget.is_full]
            assert full, "the decode memory check asks for retraction of a row with a budget"
            rows = [r for r in rows if r is not full[-1]]
            self.retract(full[-1])
        return rows

    def retract(self, r):
        """``ScheduleBatch.release_req``: what it has is its prompt when its turn comes again."""
        self.counts["retracted"] += 1
        self.free.update(r.slots[r.tree_slots :])
        self.tree.lock(r.last_node, -1)
        self.running.remove(r)
        if self.last is not None:  # what is on its way is not for it any more
            kind, launched = self.last
            self.last = kind, [one for one in launched if one is not r]
        r.prompt = [*r.prompt, *((id(r), len(r.prompt), i) for i in range(r.outputs))]
        r.max_new, r.ends_after = r.max_new - r.outputs, r.ends_after - r.outputs
        r.slots, r.tree_slots = [], 0
        r.outputs = r.start = r.end = r.decode_steps = 0
        self.waiting.append(r)
