"""The console at /longflow and its data routes on SGLang's own FastAPI app."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.middleware import Middleware

from sglang_longflow import __version__
from sglang_longflow.core.http_budget import BudgetFields
from sglang_longflow.hooks import verify
from sglang_longflow.hooks.drain import CountResponses
from sglang_longflow.hooks.metrics import count_refusal
from sglang_longflow.hooks.stats import OUR_QUESTION
from sglang_longflow.monitor import what_if
from sglang_longflow.monitor.health import StalledIsUnhealthy
from sglang_longflow.monitor.page import DATA_HEADERS, FILE_HEADERS, PAGE, load_files
from sglang_longflow.monitor.snapshots import (
    DEFAULT_MAX_AGE_S,
    MAX_AGE_LIMIT_S,
    SchedulerSilent,
    Snapshots,
    merge,
    not_known,
)
from sglang_longflow.planner.geometry import PlanError, geometry_from
from sglang_longflow.planner.plan import (
    DEFAULT_OUTPUT_TOKENS,
    DEFAULT_PROMPT_TOKENS,
)
from sglang_longflow.settings.config import config_from
from sglang_longflow.settings.flags import MIN_BUDGET_TOKENS


class _Route(APIRoute):
    """Errors of our routes: one line in SGLang's form, with our headers."""

    def get_route_handler(self):
        original = super().get_route_handler()

        async def handle(request) -> Response:
            try:
                return await original(request)
            except RequestValidationError as error:
                return _error(400, "; ".join(_line(one) for one in error.errors()))
            except HTTPException as error:
                return _error(error.status_code, str(error.detail))

        return handle


def _line(error: dict) -> str:
    name = error["loc"][-1]
    if error["type"] == "missing":
        return f"{name}: is required"
    return f"{name}={str(error['input'])[:80]!r}: {error['msg']}"


def _error(status: int, message: str) -> Response:
    body = {"object": "error", "message": message, "type": str(status), "code": status}
    return _json(json.dumps(body).encode(), status)


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, DATA_HEADERS, "application/json")


_ERROR = {"content": {"application/json": {"schema": {"type": "object"}}}}
_DATA = {
    "response_class": Response,
    "responses": {
        200: {"description": "JSON", **_ERROR},
        "4XX": {"description": "A wrong value, or no key where --api-key is set", **_ERROR},
        503: {"description": "The scheduler's process has ended", **_ERROR},
    },
}
router = APIRouter(prefix="/longflow", tags=["longflow"], route_class=_Route)
_files: dict[str, tuple[bytes, str]] = {}
_server: what_if.RunningServer | None = None


def _manager():
    from sglang.srt.entrypoints.http_server import get_global_state

    return get_global_state().tokenizer_manager


def _server_facts() -> dict:
    """What the HTTP process itself knows."""
    return {"model": _manager().served_model_name, "longflow": __version__}


async def _ask() -> dict:
    from sglang.srt.managers.io_struct import GetInternalStateReq

    manager = _manager()
    manager.auto_create_handle_loop()
    question = GetInternalStateReq(rid=OUR_QUESTION)
    answers = await manager.get_internal_state_communicator(question)
    found = [a.internal_state["longflow"] for a in answers if "longflow" in a.internal_state]
    if not found:
        raise SchedulerSilent("the schedulers have no KV budget")
    return merge(found, _server_facts())


def _ended() -> str:
    """Which scheduler's process has ended; empty while all live."""
    # SGLang's own watch over them, which ends the server a second after one of them.
    watchdog = _manager()._subprocess_watchdog
    if watchdog is None:  # none of them is a process of this machine
        return ""
    for process, name in zip(watchdog._processes, watchdog._names):
        if name.startswith("scheduler") and not process.is_alive():
            return f"{name} (process {process.pid}) has ended with status {process.exitcode}"
    return ""


_snapshots = Snapshots(_ask, _ended)
_Age = Annotated[float, Query(ge=0, le=MAX_AGE_LIMIT_S, allow_inf_nan=False)]
_Tokens = Annotated[int, Query(ge=1, le=what_if.MAX_OUTPUT_TOKENS)]


async def _look(max_age_s: float):
    try:
        return await _snapshots.get(max_age_s)
    except SchedulerSilent as error:
        raise HTTPException(503, str(error)) from error


@router.get("/stats", **_DATA)
async def stats(
    max_age_s: _Age = DEFAULT_MAX_AGE_S,
) -> Response:
    """Settings, pool and running requests; no prompt text. docs/operate/console.md has the shape.

    Answers are shared: one may be up to `max_age_s` old, and older while `state` is "busy".
    """
    look = await _look(max_age_s)
    return _json(look.body({} if look.snapshot else not_known(_server_facts())))


@router.get("/plan", **_DATA)
async def plan(
    budget: Annotated[int, Query(ge=MIN_BUDGET_TOKENS, le=what_if.MAX_OUTPUT_TOKENS)],
    output_tokens: _Tokens = DEFAULT_OUTPUT_TOKENS,
    prompt_tokens: _Tokens = DEFAULT_PROMPT_TOKENS,
    users: Annotated[int | None, Query(ge=1, le=what_if.MAX_USERS)] = None,
) -> Response:
    """What a budget would buy in this server's pool, as ``longflow plan`` works it out."""
    snapshot = (await _look(MAX_AGE_LIMIT_S)).snapshot
    if snapshot is None:
        raise HTTPException(503, "the scheduler is in its first long step; ask again later")
    settings = snapshot.stats["settings"]
    try:
        found = _running_server().plan(settings, budget, prompt_tokens, output_tokens, users)
    except PlanError as error:
        raise HTTPException(400, str(error)) from error
    return _json(json.dumps(found).encode())


def _running_server() -> what_if.RunningServer:
    global _server
    if _server is None:
        from sglang.srt.entrypoints.http_server import get_global_state

        state = get_global_state()
        model, arguments = state.tokenizer_manager.model_config, state.tokenizer_manager.server_args
        folder = model.model_path if Path(model.model_path).is_dir() else None
        _server = what_if.RunningServer(
            geometry_from(model.hf_config.to_dict(), arguments.served_model_name, folder),
            pool_tokens=state.scheduler_info["max_total_num_tokens"],
            tp=arguments.tp_size,
            dtype=str(model.dtype).removeprefix("torch."),
            kv_cache_dtype=arguments.kv_cache_dtype,
        )
    return _server


@router.get("", response_class=Response, include_in_schema=False)
async def page() -> Response:
    """The console; it holds no data of the server."""
    return await static(PAGE)


@router.get("/static/{name}", response_class=Response, include_in_schema=False)
async def static(name: str) -> Response:
    """A file of the console."""
    if name not in _files:
        raise HTTPException(404, f"name={name!r}: the console has no such file")
    content, media_type = _files[name]
    return Response(content, 200, FILE_HEADERS, media_type)


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
    from sglang.srt.entrypoints.http_server import app

    config = config_from(server_args)
    # Innermost: after the API key was asked for, and after a body was decompressed.
    fields = Middleware(BudgetFields, routes=app.routes, config=config, count=count_refusal)
    app.user_middleware.append(fields)
    if config is None:
        return
    verify.require_all()
    _files.update(load_files())
    app.include_router(router)
    app.add_middleware(CountResponses)
    app.add_middleware(PlainMetrics)
    app.add_middleware(StalledIsUnhealthy, look=_snapshots.get)
