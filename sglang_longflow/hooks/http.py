# SPDX-License-Identifier: Apache-2.0
"""The console at /longflow and its data routes on SGLang's own FastAPI app."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.types import Receive, Scope, Send

from sglang_longflow import __version__
from sglang_longflow.core.http_budget import BudgetFields
from sglang_longflow.hooks import verify
from sglang_longflow.hooks.drain import CountResponses, drain_of
from sglang_longflow.hooks.metrics import count_refusal, local_counts
from sglang_longflow.hooks.sglang_types import TokenizerManager
from sglang_longflow.hooks.stats import OUR_QUESTION
from sglang_longflow.monitor import what_if
from sglang_longflow.monitor.access_log import NoPolls
from sglang_longflow.monitor.health import StalledIsUnhealthy
from sglang_longflow.monitor.history import COARSE_SPAN_S, INTERVAL_S, SpanError
from sglang_longflow.monitor.page import DATA_HEADERS, FILE_HEADERS, PAGE, load_files
from sglang_longflow.monitor.sampler import Sampler, WhileServing
from sglang_longflow.monitor.snapshots import (
    DEFAULT_MAX_AGE_S,
    MAX_AGE_LIMIT_S,
    Look,
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
from sglang_longflow.settings.resolved import resolved


class _Route(APIRoute):
    """Errors of our routes: one line in SGLang's form, with our headers."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        original = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await original(request)
            except RequestValidationError as error:
                return _error(400, "; ".join(_line(one) for one in error.errors()))
            except HTTPException as error:
                return _error(error.status_code, str(error.detail))

        return handle


def _line(error: dict[str, Any]) -> str:
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
_DATA: dict[str, Any] = {
    "response_class": Response,
    "responses": {
        200: {"description": "JSON", **_ERROR},
        "4XX": {"description": "A wrong value, or no key where --api-key is set", **_ERROR},
        503: {"description": "The scheduler's process has ended", **_ERROR},
    },
}
router = APIRouter(prefix="/longflow", tags=["longflow"], route_class=_Route)


class HttpState:
    """What our routes need of the server that they are part of; it lies in ``app.state.longflow``.

    Parameters
    ----------
    manager : TokenizerManager
    scheduler_info : mapping
        What the first scheduler reported when it was ready.
    """

    def __init__(self, manager: Any, scheduler_info: Mapping[str, Any]):
        self.manager = manager
        self.scheduler_info = scheduler_info
        self.files = load_files()
        self.snapshots = Snapshots(self.ask, self.ended)
        self.sampler = Sampler(
            lambda max_age_s: self.snapshots.get(max_age_s), lambda: local_counts(manager)
        )

    def facts(self) -> dict[str, Any]:
        """What the HTTP process itself knows."""
        return {"model": self.manager.served_model_name, "longflow": __version__}

    async def ask(self) -> dict[str, Any]:
        """The schedulers' numbers of now."""
        from sglang.srt.managers.io_struct import GetInternalStateReq

        self.manager.auto_create_handle_loop()
        question = GetInternalStateReq(rid=OUR_QUESTION)
        answers = await self.manager.get_internal_state_communicator(question)
        found = [a.internal_state["longflow"] for a in answers if "longflow" in a.internal_state]
        if not found:
            raise SchedulerSilent("the schedulers have no KV budget")
        merged = merge(found, self.facts())
        # A pause with abort stops no scheduler: the HTTP process holds every request back.
        return {**merged, "paused": merged["paused"] or self.manager.is_pause}

    def ended(self) -> str:
        """Which scheduler's process has ended; empty while all live."""
        # SGLang's own watch over them, which ends the server a second after one of them.
        watchdog = self.manager._subprocess_watchdog
        if watchdog is None:  # none of them is a process of this machine
            return ""
        for process, name in zip(watchdog._processes, watchdog._names):
            if name.startswith("scheduler") and not process.is_alive():
                return f"{name} (process {process.pid}) has ended with status {process.exitcode}"
        return ""

    @functools.cached_property
    def server(self) -> what_if.RunningServer:
        """The model and pool that plans are made for."""
        model, arguments = self.manager.model_config, resolved(self.manager.server_args)
        folder = model.model_path if Path(model.model_path).is_dir() else None
        return what_if.RunningServer(
            geometry_from(model.hf_config.to_dict(), arguments.served_model_name, folder),
            pool_tokens=self.scheduler_info["max_total_num_tokens"],
            tp=arguments.tp_size,
            dtype=str(model.dtype).removeprefix("torch."),
            kv_cache_dtype=arguments.kv_cache_dtype,
            model=arguments.model_path,
        )

    async def look(self, max_age_s: float) -> Look:
        """A snapshot, at most `max_age_s` old if the scheduler answers; HTTP 503 after its end."""
        try:
            return await self.snapshots.get(max_age_s)
        except SchedulerSilent as error:
            raise HTTPException(503, str(error)) from error


def _state(request: Request) -> HttpState:
    found: HttpState = request.app.state.longflow
    return found


_Age = Annotated[float, Query(ge=0, le=MAX_AGE_LIMIT_S, allow_inf_nan=False)]
_Tokens = Annotated[int, Query(ge=1, le=what_if.MAX_OUTPUT_TOKENS)]


@router.get("/stats", **_DATA)
async def stats(
    request: Request,
    max_age_s: _Age = DEFAULT_MAX_AGE_S,
) -> Response:
    """Settings, pool and running requests; no prompt text. docs/operate/console.md has the shape.

    Answers are shared: one may be up to `max_age_s` old, and older while `state` is "busy".
    """
    state = _state(request)
    look = await state.look(max_age_s)
    return _json(look.body({} if look.snapshot else not_known(state.facts())))


_Seconds = Annotated[int, Query(ge=INTERVAL_S, le=COARSE_SPAN_S)]


@router.get("/history", **_DATA)
async def history(
    request: Request,
    span_s: _Seconds = 600,
    step_s: Annotated[int | None, Query(ge=INTERVAL_S, le=COARSE_SPAN_S)] = None,
) -> Response:
    """The last `span_s` seconds of this server, a value per `step_s`; null where it was silent."""
    sampler = _state(request).sampler
    try:
        found = sampler.history.table(sampler.now(), span_s, step_s)
    except SpanError as error:
        raise HTTPException(400, str(error)) from error
    return _json(json.dumps(found, separators=(",", ":"), allow_nan=False).encode())


@router.get("/plan", **_DATA)
async def plan(
    request: Request,
    budget: Annotated[int, Query(ge=MIN_BUDGET_TOKENS, le=what_if.MAX_OUTPUT_TOKENS)],
    output_tokens: _Tokens = DEFAULT_OUTPUT_TOKENS,
    prompt_tokens: _Tokens = DEFAULT_PROMPT_TOKENS,
    users: Annotated[int | None, Query(ge=1, le=what_if.MAX_USERS)] = None,
) -> Response:
    """What a budget would buy in this server's pool, as ``longflow plan`` works it out."""
    state = _state(request)
    snapshot = (await state.look(MAX_AGE_LIMIT_S)).snapshot
    if snapshot is None:
        raise HTTPException(503, "the scheduler is in its first long step; ask again later")
    settings = snapshot.stats["settings"]
    try:
        found = state.server.plan(settings, budget, prompt_tokens, output_tokens, users)
    except PlanError as error:
        raise HTTPException(400, str(error)) from error
    return _json(json.dumps(found).encode())


@router.get("", response_class=Response, include_in_schema=False)
async def page(request: Request) -> Response:
    """The console; it holds no data of the server."""
    return await static(request, PAGE)


@router.get("/static/{name}", response_class=Response, include_in_schema=False)
async def static(request: Request, name: str) -> Response:
    """A file of the console."""
    files = _state(request).files
    if name not in files:
        raise HTTPException(404, f"name={name!r}: the console has no such file")
    content, media_type = files[name]
    return Response(content, 200, FILE_HEADERS, media_type)


class PlainMetrics:
    """ASGI middleware: ``/metrics`` in Prometheus' own text format, where names keep their colon.

    Asked for OpenMetrics without ``escaping=allow-utf-8``, as Prometheus 2 asks, prometheus_client
    (0.26) names the samples ``sglang_num_running_reqs``, and no query for ``sglang:...`` finds one.
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/metrics"):
            accepted = b",".join(value for name, value in scope["headers"] if name == b"accept")
            if b"escaping=allow-utf-8" not in accepted:
                others = [pair for pair in scope["headers"] if pair[0] != b"accept"]
                plain = (b"accept", b"text/plain;version=0.0.4")
                scope = {**scope, "headers": [*others, plain]}
        await self.app(scope, receive, send)


def setup_and_run_http_server(
    server_args: Any,
    tokenizer_manager: TokenizerManager,
    template_manager: Any,
    port_args: Any,
    scheduler_infos: Sequence[Mapping[str, Any]],
    *args: Any,
    **kwargs: Any,
) -> None:
    """Before ``_setup_and_run_http_server``, in the process that serves HTTP."""
    from sglang.srt.entrypoints.http_server import app

    config, settings = config_from(server_args), resolved(server_args)
    # Innermost: after the API key was asked for, and after a body was decompressed.
    count = functools.partial(count_refusal, model_name=settings.served_model_name)
    fields = Middleware(BudgetFields, routes=app.routes, config=config, count=count)
    app.user_middleware.append(fields)
    if config is None:
        return
    verify.require_all()
    state = app.state.longflow = HttpState(tokenizer_manager, scheduler_infos[0])
    app.include_router(router)
    app.add_middleware(CountResponses, drain=drain_of(tokenizer_manager))
    app.add_middleware(PlainMetrics)
    app.add_middleware(StalledIsUnhealthy, look=state.snapshots.get)
    app.add_middleware(WhileServing, work=state.sampler.run)
    logging.getLogger("uvicorn.access").addFilter(NoPolls(settings.fastapi_root_path))
