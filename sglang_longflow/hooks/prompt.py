# SPDX-License-Identifier: Apache-2.0
"""Prefill, SGLang's side: prompts over budget - 1, from the prefix hit to the last chunk."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch

from sglang_longflow.core import runtime
from sglang_longflow.core.contracts import PrefillView, PromptRow
from sglang_longflow.core.prompt import max_prefix_tokens
from sglang_longflow.hooks.guard import blaming
from sglang_longflow.hooks.request import bounded_row
from sglang_longflow.hooks.sglang_types import Req, ScheduleBatch


def window_tokens(req: Req, prompt_tokens: int) -> int:
    """Queries at the end of the prompt that must be computed together; 0 if it is not cut."""
    row = bounded_row(req)
    if row is None or not row.budget.must_cut(prompt_tokens):
        return 0
    return row.budget.policy.prompt_window_tokens


def compute_max_prefix_len(result: int, self: Req, input_len: int) -> int:
    """After ``Req._compute_max_prefix_len``."""
    return max_prefix_tokens(result, input_len, window_tokens(self, input_len))


def alloc_for_extend(result: Any, batch: ScheduleBatch) -> None:
    """After ``alloc_for_extend``: note the prompts that end in this batch and are too long."""
    batch.longflow_view = None
    if (state := runtime.current()) is None:
        return
    state.stall.running()
    rows = []
    for req, end in zip(batch.reqs, accumulate(batch.extend_lens), strict=True):
        with blaming(req, "its prompt's cut"):
            if (row := _to_cut(req, end, batch.device, len(state.kv_layers))) is not None:
                rows.append(row)
    if rows:
        batch.longflow_view = PrefillView(tuple(rows))


def _to_cut(req: Req, query_end: int, device: Any, num_layers: int) -> PromptRow | None:
    """What the backend must know of a prompt that ends in this batch over budget - 1, else None.

    Also where `max_new_tokens` is 0 (each `n` > 1 and /v1/score): beside rows that decode, overlap
    scheduling launches one decode step of such a request too.
    """
    row = bounded_row(req)
    prompt_tokens = len(req.full_untruncated_fill_ids)
    is_last_chunk = req.extend_end == prompt_tokens
    if row is None or not is_last_chunk or not row.budget.must_cut(prompt_tokens):
        return None
    keep_tokens = row.budget.tokens - 1
    row.cut_tokens = prompt_tokens - keep_tokens
    row.prompt_keep = torch.empty(num_layers, keep_tokens, dtype=torch.int64, device=device)
    return PromptRow(
        query_end=query_end,
        req_pool_idx=req.kv.req_pool_idx,
        prompt_tokens=prompt_tokens,
        budget=row.budget,
        keep=row.prompt_keep,
    )
