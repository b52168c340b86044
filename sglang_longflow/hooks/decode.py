# SPDX-License-Identifier: Apache-2.0
"""Decode, SGLang's side: the step's view reaches the backend, and the backend is ours."""

from __future__ import annotations

from typing import Any

from sglang_longflow.core import runtime
from sglang_longflow.hooks.sglang_types import Original, ScheduleBatch


def forward_batch_init_new(
    forward_batch: Any, cls: type, batch: ScheduleBatch, model_runner: Any, **kwargs: Any
) -> None:
    """After ``ForwardBatch.init_new``."""
    state = runtime.current()
    if state is not None:
        view = getattr(batch, "longflow_view", None)
        state.pending_view = runtime.PendingView(forward_batch.rids, view)


def enable_fused_set_kv_buffer(original: Original, forward_batch: Any) -> Any:
    """Around ``enable_fused_set_kv_buffer``."""
    return False if runtime.current() is not None else original(forward_batch)


def attn_backend_wrapper(original: Original, runner: Any, full_attn_backend: Any) -> Any:
    """Around ``attn_backend_wrapper``: the backend of the layers with K and V, wrapped.

    Of a hybrid model SGLang puts it beside that of the layers with a state.
    """
    state = runtime.current()
    if state is None or runner.is_draft_worker:
        return original(runner, full_attn_backend)
    from sglang_longflow.backend.attention import LongFlowAttnBackend

    return original(runner, LongFlowAttnBackend(full_attn_backend, runner, state))
