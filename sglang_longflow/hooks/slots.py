# SPDX-License-Identifier: Apache-2.0
"""Slots, SGLang's side: slots for a decode step, and rows that become owners of theirs.

Region map of a bounded row in ``req_to_token[req_pool_idx]``:

    [0, cache_protected_len)                 the radix tree's slots, locked by this request
    [cache_protected_len, kv_allocated_len)  the row's own slots
    owned row:  cache_protected_len == 0 and kv_allocated_len == budget, for good

``kv_committed_len`` and ``kv_allocated_len`` are SGLang's and stay resident lengths here;
``seq_lens`` stays logical.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.mem_cache.allocation import (
    ALLOC_FOR_DECODE_FUNCS,
    alloc_for_decode_default,
    alloc_token_slots,
)
from sglang.srt.mem_cache.common import checkpoint_kv_cache

from sglang_longflow.core import runtime
from sglang_longflow.core.contracts import DecodeView, KVRow, RowMove
from sglang_longflow.core.rows import ResidentRow, Step
from sglang_longflow.core.slots import StepPlan, plan_step, retraction_order, slots_required
from sglang_longflow.core.tree import freed_by
from sglang_longflow.errors import UnsupportedSetup
from sglang_longflow.hooks import metrics
from sglang_longflow.hooks.guard import blaming, end_request
from sglang_longflow.hooks.request import bounded_row, resident_row, row_of
from sglang_longflow.hooks.sglang_types import Original, Req, ScheduleBatch

logger = logging.getLogger(__name__)


def _read(reqs: Sequence[Req]) -> dict[int, ResidentRow]:
    """The rows of `reqs` that may still take or return slots, by their place in the batch.

    A request whose row cannot be read ends; in the step that is left to it, it takes a slot.
    """
    rows = {}
    for i, req in enumerate(reqs):
        if _is_settled(req):
            continue
        rows[i] = ResidentRow(None, req.kv.kv_committed_len)
        with blaming(req, "its row before a decode step"):
            rows[i] = resident_row(req)
    return rows


def _is_settled(req: Req) -> bool:
    """Whether a request owns its slots: it overwrites from now on, and takes and returns none.

    Almost all rows do, in almost all steps; nothing more is read of those.
    """
    row = row_of(req)
    return row is not None and row.owned


def new_tokens_required_next_decode(
    original: Original, self: ScheduleBatch, selected_indices: Sequence[int] | None = None
) -> Any:
    """Around ``ScheduleBatch.new_tokens_required_next_decode``."""
    if runtime.current() is None:
        return original(self, selected_indices)
    reqs = self.reqs if selected_indices is None else [self.reqs[i] for i in selected_indices]
    if not any(bounded_row(req) for req in reqs):
        return original(self, selected_indices)
    return slots_required(list(_read(reqs).values()), freed_by(self.tree_cache))


def get_decode_retraction_order(order: list[int], reqs: Sequence[Req]) -> list[int]:
    """After ``ScheduleBatch._get_decode_retraction_order``: budgeted rows are kept longest."""
    if runtime.current() is None:
        return order
    return retraction_order(order, [bounded_row(req) is not None for req in reqs])


def reset_for_retract(result: None, self: Req) -> None:
    """After ``Req.reset_for_retract``."""
    row = row_of(self)
    if row is None:
        return
    was_owned = row.owned
    row.reset()
    if not row.budget.is_full and (state := runtime.current()) is not None:
        state.counters.retracted_budgeted_rows += 1
    if was_owned:
        self.skip_radix_cache_insert = False


def mamba_prefix_cache_update(
    original: Original, self: Any, req: Req, batch: ScheduleBatch, *args: Any, **kwargs: Any
) -> None:
    """Around ``SchedulerBatchResultProcessor._mamba_prefix_cache_update``."""
    if not _is_settled(req):
        original(self, req, batch, *args, **kwargs)


def register_alloc_for_decode(device_type: str) -> None:
    """Put `alloc_for_decode` into SGLang's table for batches on "cuda" or "cpu".

    Raises
    ------
    UnsupportedSetup
        Another plugin is there already; it would not know which rows take no slot.
    """
    found = ALLOC_FOR_DECODE_FUNCS[device_type]
    if found is not alloc_for_decode_default:
        _refuse_alloc_for_decode(device_type, found)
    ALLOC_FOR_DECODE_FUNCS[device_type] = functools.partial(alloc_for_decode, found)


def require_alloc_for_decode(device_type: str) -> None:
    """Raise UnsupportedSetup if another plugin took the place of `alloc_for_decode` since."""
    found = ALLOC_FOR_DECODE_FUNCS[device_type]
    if getattr(found, "func", None) is not alloc_for_decode:
        _refuse_alloc_for_decode(device_type, found)


def _refuse_alloc_for_decode(device_type: str, found: Any) -> None:
    name = f"{found.__module__}.{getattr(found, '__qualname__', type(found).__name__)}"
    raise UnsupportedSetup(
        f"ALLOC_FOR_DECODE_FUNCS[{device_type!r}]: {name} allocates decode steps; remove that "
        f"plugin, or drop --kv-budget"
    )


def alloc_for_decode(original: Original, batch: ScheduleBatch, token_per_req: int) -> Any:
    """An entry of ``ALLOC_FOR_DECODE_FUNCS``: [bs] int64 pool slots.

    0, SGLang's padding slot, for full rows.

    Mutates ``req_to_token``, the requests' lengths and the tree's locks, and leaves the step's
    view on the batch.
    """
    batch.longflow_view = None
    state = runtime.current()
    if state is None:
        return original(batch, token_per_req)
    managed = [row_of(req) for req in batch.reqs]
    if all(row is None or row.budget.is_full for row in managed):
        metrics.observe_batch(state, batch)
        return original(batch, token_per_req)

    rows = _read(batch.reqs)
    _keep_newest_if_unpicked(batch, rows, len(state.kv_layers))
    _insert_prompts(batch, rows)
    plan = plan_step(managed, rows)
    # Give back first, take afterwards: a node that no one else holds can be evicted to make room
    # for its own copy, which is safe because the backend reads every source slot of the step
    # before it writes any.
    sources = {i: _give_back(batch, batch.reqs[i], rows[i]) for i in plan.owners}
    taken = alloc_token_slots(batch.tree_cache, plan.taken_slots)
    moves = [
        _move(batch, batch.reqs[i], plan.owners[i], sources[i], taken[part])
        for i, part in plan.moves.items()
    ]
    _record_step(batch, managed, plan)
    state.counters.overwritten_tokens += plan.overwritten_tokens
    state.counters.cut_tokens += plan.cut_tokens
    out_cache_loc = _write_appended(batch, plan.appends, taken)
    batch.longflow_view = DecodeView(
        plan.kv_lens, plan.overwrite, plan.fresh, plan.full_rows, moves
    )
    metrics.observe_batch(state, batch)
    return out_cache_loc


def _record_step(batch: ScheduleBatch, managed: list[KVRow | None], plan: StepPlan) -> None:
    """Lengths and counts of the requests after a step."""
    steps = zip(batch.reqs, managed, plan.kv_lens, plan.overwrite, plan.fresh, strict=True)
    for req, row, kv_len, overwrites, is_cut in steps:
        if not overwrites:
            req.kv.kv_allocated_len += 1
            req.kv.kv_committed_len += 1
            continue
        assert row is not None
        req.kv.kv_committed_len = kv_len  # a full row does not grow
        if is_cut:
            req.kv.kv_allocated_len = kv_len
            row.prompt_keep = None
            batch.batch_is_full = False  # the prompt's slots are free for others now
        else:
            row.overwritten_tokens += 1
    for i in plan.bounded:
        row = managed[i]
        assert row is not None
        row.decode_steps += 1


def _keep_newest_if_unpicked(
    batch: ScheduleBatch, rows: dict[int, ResidentRow], num_layers: int
) -> None:
    """A row to cut whose prefill picked nothing keeps its newest tokens, and ends with an error.

    No way to this state is known. If there is one, it must not leave a row over its budget.
    """
    for i, row in rows.items():
        req, budget = batch.reqs[i], row.budget
        managed = row_of(req)
        if not row.lacks_pick or budget is None or managed is None:
            continue
        logger.error(
            "longflow: request %s, which ends: %d tokens in a row of %d, and no prefill picked",
            req.rid,
            row.kv_len,
            budget.tokens,
        )
        end_request(
            req,
            f"longflow: its row held {row.kv_len} tokens where kv_budget={budget.tokens}, and "
            f"no prefill had picked those that stay",
        )
        keep = torch.arange(row.kv_len - budget.tokens + 1, row.kv_len, device=batch.device)
        managed.prompt_keep = keep.expand(num_layers, -1)
        managed.cut_tokens = row.kv_len - budget.tokens + 1
        rows[i] = resident_row(req)


def _insert_prompts(batch: ScheduleBatch, rows: dict[int, ResidentRow]) -> None:
    """Leave prompts that are about to be cut in the radix tree, whole, for later requests.

    SGLang does it when it processes the prefill's result, which under overlap scheduling comes
    after this step.
    """
    if batch.tree_cache.disable:
        return
    for i, row in rows.items():
        if row.step is Step.CUT:
            checkpoint_kv_cache(batch.reqs[i], batch.tree_cache)
            rows[i] = resident_row(batch.reqs[i])


def _give_back(batch: ScheduleBatch, req: Req, row: ResidentRow) -> torch.Tensor:
    """Turn a row into an owner: its tree nodes (or old slots) may be evicted from here on.

    Returns the pool slots [n] int64 that hold what the row must keep.
    """
    moved = row.kv_len if row.step is Step.CUT else row.tree_slots
    source = batch.req_to_token_pool.req_to_token[req.kv.req_pool_idx, :moved].to(torch.int64)
    tree = batch.tree_cache
    tree.unlock(req.lock)
    req.lock = None
    if row.step is Step.CUT and row.kv_len > row.tree_slots:
        tree.token_to_kv_pool_allocator.free(source[row.tree_slots :])
    req.kv.cache_protected_len = 0
    # From now on its tokens do not describe its slots: nothing of it may enter the tree.
    req.skip_radix_cache_insert = True
    managed = row_of(req)
    assert managed is not None
    managed.owned = True
    return source


def _move(
    batch: ScheduleBatch, req: Req, step: Step, source: torch.Tensor, slots: torch.Tensor
) -> RowMove:
    """Write a new owner's slots to its row; returns what is to be copied into them."""
    place = (req.kv.req_pool_idx, slice(0, len(slots)))
    batch.req_to_token_pool.write(place, slots.to(torch.int32))
    row = row_of(req)
    if step is Step.CUT:
        assert row is not None
        return RowMove(source, slots[: row.budget.tokens - 1], row.prompt_keep)
    return RowMove(source, slots)


def _write_appended(
    batch: ScheduleBatch, offsets: dict[int, int], taken: torch.Tensor
) -> torch.Tensor:
    """Write appended slots, ``taken[offsets[i]]`` for row i; returns the ``out_cache_loc``."""
    out_cache_loc = torch.zeros(len(batch.reqs), dtype=torch.int64, device=taken.device)
    if not offsets:
        return out_cache_loc
    index = torch.tensor([list(offsets), list(offsets.values())], dtype=torch.int64)
    batch_index, taken_index = index.to(taken.device, non_blocking=True)
    slots = taken[taken_index].to(torch.int64)
    out_cache_loc[batch_index] = slots
    batch.req_to_token_pool.write(
        (batch.req_pool_indices[batch_index], batch.seq_lens[batch_index]), slots.to(torch.int32)
    )
    return out_cache_loc
