"""GET /longflow/stats on SGLang's own FastAPI app."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException

from sglang_longflow.config import config_from
from sglang_longflow.hooks import verify
from sglang_longflow.hooks.drain import CountResponses

router = APIRouter(prefix="/longflow", tags=["longflow"])


@router.get("/stats")
async def stats() -> dict:
    """Settings, pool and running requests; no prompt text.

    ``{"settings": {...}, "pool": {"total_tokens", "available_tokens", "evictable_tokens",
    "budgeted_tokens"}, "requests": [{"rid", "seq_len", "kv_len", "kv_budget", "kv_policy"}],
    "counters": {...}, "queued_requests": n}``. With several data-parallel schedulers the pools
    and counters are summed.
    """
    from sglang.srt.entrypoints.http_server import get_global_state

    states = await get_global_state().tokenizer_manager.get_internal_state()
    found = [state["longflow"] for state in states if "longflow" in state]
    if not found:
        raise HTTPException(503, "the schedulers have no KV budget")
    merged = found[0]
    for other in found[1:]:
        for part in ("pool", "counters"):
            merged[part] = {key: merged[part][key] + other[part][key] for key in merged[part]}
        merged["requests"] += other["requests"]
        merged["queued_requests"] += other["queued_requests"]
    return merged


class PlainMetrics:
    """ASGI middleware: ``/metrics`` in Prometheus' own text format, where names keep their colon.

    Asked for OpenMetrics without ``escaping=allow-utf-8``, as Prometheus 2 asks, prometheus_client
    (0.26) names the samples ``sglang_num_running_reqs``, and no query for ``sglang:...`` finds one.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/metrics"):
            accepted = b",".join(value for name, value in scope["headers"] if name == b"accept")
            if b"escaping=allow-utf-8" not in accepted:
                others = [pair for pair in scope["headers"] if pair[0] != b"accept"]
                plain = (b"accept", b"text/plain;version=0.0.4")
                scope = {**scope, "headers": [*others, plain]}
        await self.app(scope, receive, send)


def setup_and_run_http_server(server_args, *args, **kwargs) -> None:
    """Before ``_setup_and_run_http_server``, in the process that serves HTTP."""
    if config_from(server_args) is None:
        return
    from sglang.srt.entrypoints.http_server import app

    verify.require_all()
    app.include_router(router)
    app.add_middleware(CountResponses)
    app.add_middleware(PlainMetrics)
