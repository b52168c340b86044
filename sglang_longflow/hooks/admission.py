# SPDX-License-Identifier: Apache-2.0
"""Admission, SGLang's side: its PrefillAdder reserves what budgeted rows may really take."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from sglang.srt.managers.schedule_policy import AddReqResult
from sglang.srt.managers.schedule_policy import PrefillAdder as StockAdder

from sglang_longflow.core import runtime
from sglang_longflow.core.admission import admission_need, reserve_for
from sglang_longflow.core.contracts import KVBudget
from sglang_longflow.core.prompt import chunk_end
from sglang_longflow.core.rows import ResidentRow
from sglang_longflow.core.tree import freed_by, freed_locks, held_alone
from sglang_longflow.hooks.guard import blaming, guarded
from sglang_longflow.hooks.hook import Fails
from sglang_longflow.hooks.prompt import window_tokens
from sglang_longflow.hooks.request import bounded_row, longest, resident_row
from sglang_longflow.hooks.sglang_types import (
    Original,
    PrefillAdder,
    Req,
    SamplingParams,
    Scheduler,
)


def live_row(req: Req) -> ResidentRow | None:
    """A running request as admission sees it; None if nothing is to be reserved for it."""
    row = bounded_row(req)
    # A row that owns its slots takes nothing more.
    if row is None or row.owned or not req.kv.holds_kv or req.finished():
        return None
    return resident_row(req)


def prefill_adder_class(result: type, self: Scheduler) -> type | None:
    """After ``Scheduler.get_prefill_adder_class``; None leaves SGLang's."""
    return None if runtime.current() is None else BudgetAdder


class BudgetAdder(StockAdder):
    """One admission pass that knows what rows with a budget may still take."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.running_batch is not None:
            self.memory_budget.total_offset += _reserved(self)

    def _get_running_request_total_token_offset(self, req: Req) -> Any:
        """Nothing is estimated for a row with a budget: `_reserved` is exact."""
        return _contained("_running_offset")(
            StockAdder._get_running_request_total_token_offset, self, req
        )

    def add_one_req(
        self, req: Req, has_chunked_req: bool, truncation_align_size: int | None
    ) -> Any:
        add = _contained("_add_one_req")
        return add(StockAdder.add_one_req, self, req, has_chunked_req, truncation_align_size)

    def add_chunked_req(self, req: Req) -> Any:
        return _contained("_add_chunked_req")(StockAdder.add_chunked_req, self, req)


@functools.cache
def _contained(name: str) -> Callable[..., Any]:
    """A method of `BudgetAdder`, whose failure ends the request that it is about."""
    return guarded(globals()[name], "around", Fails.REQUEST, blamed=1)


def _reserved(adder: PrefillAdder) -> int:
    rows = []
    assert adder.running_batch is not None
    for req in adder.running_batch.reqs:
        with blaming(req, "its row before an admission"):
            if (row := live_row(req)) is not None:
                rows.append(row)
    return sum(reserve_for(rows, freed_by(adder.tree_cache)))


def _running_offset(original: Original, self: PrefillAdder, req: Req) -> Any:
    """Around ``PrefillAdder._get_running_request_total_token_offset``."""
    return original(self, req) if bounded_row(req) is None else 0


def _need(adder: PrefillAdder, req: Req, budget: KVBudget, *, lock_held: bool) -> int:
    """Slots for `req` beyond its prefix hit; `lock_held` says whether it holds its lock already."""
    tree = adder.tree_cache
    own_hit = freed_locks(tree, [req.lock])[0] if lock_held else held_alone(tree, req.last_node)
    return admission_need(
        budget,
        prompt_tokens=len(req.full_untruncated_fill_ids),
        total_tokens=longest(req),
        hit_tokens=req.prefix_len,
        own_hit_tokens=own_hit,
        held_hit_tokens=0 if lock_held else req.prefix_len - own_hit,
    )


class _PromptOnly:
    """Sampling parameters for the length of one call: SGLang then counts the prompt alone.

    ``ignore_eos`` is hidden too: with the radix cache off it selects another estimate, of the
    whole output.
    """

    max_new_tokens = 0
    ignore_eos = False

    def __init__(self, params: SamplingParams):
        self._params = params

    def __getattr__(self, name: str) -> Any:
        return getattr(self._params, name)


def _stock_counts_prompt_only(original: Original, adder: PrefillAdder, req: Req, *args: Any) -> Any:
    params = req.sampling_params
    req.sampling_params = _PromptOnly(params)
    try:
        return original(adder, req, *args)
    finally:
        req.sampling_params = params


def _has_embeddings(req: Req) -> bool:
    return getattr(req, "input_embeds", None) is not None


def _end_chunk(adder: PrefillAdder, req: Req) -> None:
    """Move the end of the chunk that SGLang chose, so that the last one holds the whole window."""
    prompt_tokens = len(req.full_untruncated_fill_ids)
    chosen = req.extend_end
    end = chunk_end(req.prefix_len, chosen, prompt_tokens, window_tokens(req, prompt_tokens))
    if end == chosen:
        return
    req.extend_end = end
    adder.memory_budget.current_offset += end - chosen
    adder.rem_input_tokens -= end - chosen
    if adder.rem_chunk_tokens is not None:
        adder.rem_chunk_tokens -= end - chosen


def _add_one_req(
    original: Original,
    self: PrefillAdder,
    req: Req,
    has_chunked_req: bool,
    truncation_align_size: int | None,
) -> Any:
    """Around ``PrefillAdder.add_one_req``."""
    if self.can_run_list and _has_embeddings(req) != _has_embeddings(self.can_run_list[0]):
        return AddReqResult.OTHER  # SGLang takes the embeddings of some for those of all
    row = bounded_row(req)
    if row is None:
        return original(self, req, has_chunked_req, truncation_align_size)
    prompt_tokens = len(req.full_untruncated_fill_ids)
    window = window_tokens(req, prompt_tokens)
    left = prompt_tokens - req.prefix_len
    if self.rem_chunk_tokens is not None and self.rem_chunk_tokens < min(left, window):
        return AddReqResult.OTHER  # the window goes into one chunk: wait for the next batch
    need = _need(self, req, row.budget, lock_held=False)
    with self._lock_node(req.last_node):
        if need > self.rem_total_tokens:
            return AddReqResult.NO_TOKEN
    before = self.memory_budget.total_offset
    result = _stock_counts_prompt_only(original, self, req, has_chunked_req, truncation_align_size)
    if self.can_run_list and self.can_run_list[-1] is req:
        _end_chunk(self, req)
        self.memory_budget.total_offset = before + need
        if result == AddReqResult.CONTINUE:
            result = self.budget_state()
    return result


def _add_chunked_req(original: Original, self: PrefillAdder, req: Req) -> Any:
    """Around ``PrefillAdder.add_chunked_req``: the next chunk of the one chunked request."""
    row = bounded_row(req)
    if row is None:
        unfinished = original(self, req)
        if unfinished is not None:
            # With the policy shortest-prefill-first others may join this pass. SGLang counts what
            # this chunk takes alone, and a prefill whose slots are gone ends the scheduler.
            self.memory_budget.total_offset += len(req.full_untruncated_fill_ids) - req.extend_end
        return unfinished
    need = _need(self, req, row.budget, lock_held=True)
    before = self.memory_budget.total_offset
    result = _stock_counts_prompt_only(original, self, req)
    self.memory_budget.total_offset = before + need
    if not (self.can_run_list and self.can_run_list[-1] is req):
        return result
    _end_chunk(self, req)
    if req.extend_end == len(req.full_untruncated_fill_ids):
        return None  # `_end_chunk` ran to the end of the prompt after SGLang had cut it short
    if self.rem_chunk_tokens is not None and self.chunked_req_limit is None:
        # `_end_chunk` may have shortened the chunk: no second request may be chunked in its place.
        # With a limit, SGLang left room on purpose, and lets only whole prompts in.
        self.rem_chunk_tokens = min(self.rem_chunk_tokens, 0)
    return result
