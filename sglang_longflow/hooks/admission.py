# SPDX-License-Identifier: Apache-2.0
"""Admission, SGLang's side: PrefillAdder reserves what budgeted rows may really take."""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.schedule_policy import AddReqResult

from sglang_longflow.core import runtime
from sglang_longflow.core.admission import admission_need, reserve_for
from sglang_longflow.core.contracts import KVBudget
from sglang_longflow.core.rows import ResidentRow, node_tokens, path_to_root
from sglang_longflow.hooks.guard import blaming
from sglang_longflow.hooks.request import bounded_row, longest, resident_row
from sglang_longflow.hooks.sglang_types import Original, PrefillAdder, Req, SamplingParams


def live_row(req: Req) -> ResidentRow | None:
    """A running request as admission sees it; None if nothing is to be reserved for it."""
    row = bounded_row(req)
    # A row that owns its slots takes nothing more.
    if row is None or row.owned or req.kv is None or req.finished():
        return None
    return resident_row(req)


def adder_init(result: None, self: PrefillAdder, *args: Any, **kwargs: Any) -> None:
    """After ``PrefillAdder.__init__``."""
    if runtime.current() is None or self.running_batch is None:
        return
    rows = []
    for req in self.running_batch.reqs:
        with blaming(req, "its row before an admission"):
            if (row := live_row(req)) is not None:
                rows.append(row)
    self.rem_total_token_offset += reserve_for(rows).total_slots


def running_offset(original: Original, self: PrefillAdder, req: Req) -> Any:
    """Around ``PrefillAdder._get_running_request_total_token_offset``."""
    return original(self, req) if bounded_row(req) is None else 0


def _need(req: Req, budget: KVBudget, *, lock_held: bool) -> int:
    """Slots for `req` beyond its prefix hit; `lock_held` says whether it holds its lock already."""
    mine = 1 if lock_held else 0
    own_hit = held_by_others = 0
    for node in path_to_root(req.last_node):
        if node.lock_ref == mine:
            own_hit += node_tokens(node)
        elif not lock_held:
            held_by_others += node_tokens(node)
    return admission_need(
        budget,
        prompt_tokens=len(req.full_untruncated_fill_ids),
        total_tokens=longest(req),
        hit_tokens=len(req.prefix_indices),
        own_hit_tokens=own_hit,
        held_hit_tokens=held_by_others,
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


def add_one_req(
    original: Original,
    self: PrefillAdder,
    req: Req,
    has_chunked_req: bool,
    truncation_align_size: int | None,
) -> Any:
    """Around ``PrefillAdder.add_one_req``."""
    if runtime.current() is None:
        return original(self, req, has_chunked_req, truncation_align_size)
    if self.can_run_list and _has_embeddings(req) != _has_embeddings(self.can_run_list[0]):
        return AddReqResult.OTHER  # SGLang takes the embeddings of some for those of all
    row = bounded_row(req)
    if row is None:
        return original(self, req, has_chunked_req, truncation_align_size)
    prompt_tokens = len(req.full_untruncated_fill_ids)
    window = row.budget.policy.prompt_window_tokens if row.budget.must_cut(prompt_tokens) else 0
    left = prompt_tokens - len(req.prefix_indices)
    if self.rem_chunk_tokens is not None and self.rem_chunk_tokens < min(left, window):
        return AddReqResult.OTHER  # the window goes into one chunk: wait for the next batch
    need = _need(req, row.budget, lock_held=False)
    with self._lock_node(req.last_node):
        if need > self.rem_total_tokens:
            return AddReqResult.NO_TOKEN
    before = self.rem_total_token_offset
    result = _stock_counts_prompt_only(original, self, req, has_chunked_req, truncation_align_size)
    if self.can_run_list and self.can_run_list[-1] is req:
        self.rem_total_token_offset = before + need
        if result == AddReqResult.CONTINUE:
            result = self.budget_state()
    return result


def add_chunked_req(original: Original, self: PrefillAdder, req: Req) -> Any:
    """Around ``PrefillAdder.add_chunked_req``: the next chunk of the one chunked request."""
    row = bounded_row(req)
    if row is None:
        return original(self, req)
    need = _need(req, row.budget, lock_held=True)
    before = self.rem_total_token_offset
    result = _stock_counts_prompt_only(original, self, req)
    self.rem_total_token_offset = before + need
    if req.extend_range.end == len(req.full_untruncated_fill_ids):
        return None  # `chunk_end` ran to the end of the prompt after SGLang had called it cut short
    if self.rem_chunk_tokens is not None:
        # `chunk_end` may have shortened the chunk: no second request may be chunked in its place.
        self.rem_chunk_tokens = min(self.rem_chunk_tokens, 0)
    return result
