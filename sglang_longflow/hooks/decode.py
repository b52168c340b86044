"""Decode, SGLang's side: the step's view reaches the backend, and the backend is ours."""

from __future__ import annotations

from sglang_longflow.core import runtime


def forward_batch_init_new(forward_batch, cls, batch, model_runner, **kwargs) -> None:
    """After ``ForwardBatch.init_new``."""
    state = runtime.current()
    if state is not None:
        view = getattr(batch, "longflow_view", None)
        state.pending_view = runtime.PendingView(forward_batch.rids, view)


def enable_fused_set_kv_buffer(original, forward_batch) -> bool:
    """Around ``enable_fused_set_kv_buffer``."""
    return False if runtime.current() is not None else original(forward_batch)


def attn_backend_wrapper(backend, runner, full_attn_backend):
    """After ``attn_backend_wrapper``: the backend the server would use, wrapped."""
    state = runtime.current()
    if state is None or runner.is_draft_worker:
        return None
    from sglang_longflow.backend.attention import LongFlowAttnBackend

    return LongFlowAttnBackend(backend, runner, state)
