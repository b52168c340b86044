# SPDX-License-Identifier: Apache-2.0
"""Budgets in HTTP requests: the headers, and keys in places of a body that SGLang does not read.

SGLang drops a field of a body that it does not know without a word, so a budget there would be
another budget. `BudgetFields` refuses it with the place where it belongs. The headers
``X-KV-Budget`` and ``X-KV-Policy`` are for endpoints, SDKs and routers that drop ``custom_params``.
"""

from __future__ import annotations

import contextvars
import difflib
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import orjson

from sglang_longflow.core.request import (
    BUDGET_KEY,
    INACTIVE,
    POLICY_KEY,
    REQUEST_KEYS,
    resolve_budget,
)
from sglang_longflow.errors import BudgetError
from sglang_longflow.settings.config import LongFlowConfig

# ASGI's own shapes (asgiref.typing), without the package.
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HEADERS = {b"x-kv-budget": BUDGET_KEY, b"x-kv-policy": POLICY_KEY}
_SHOWN = {BUDGET_KEY: "X-KV-Budget", POLICY_KEY: "X-KV-Policy"}
_HEADER_PLACE = "send the header X-KV-Budget (X-KV-Policy)"
_NO_ROW = "this endpoint generates nothing, so it has no KV budget; drop it"
#: SGLang's functions that answer a request for tokens or scores: where ``custom_params`` is read
#: in their bodies, `[]` for each of a list; empty: nowhere, None: nothing is generated.
_OPENAI, _GENERATE = "custom_params", "sampling_params[].custom_params"
PLACES: dict[str, str | None] = {
    "generate_request": _GENERATE,
    "openai_v1_completions": _OPENAI,
    "openai_v1_chat_completions": _OPENAI,
    "sagemaker_chat_completions": _OPENAI,
    "vertex_generate": f"parameters.{_GENERATE}",
    "v1_responses_request": "",
    "anthropic_v1_messages": "",
    "ollama_chat": "",
    "ollama_generate": "",
    "v1_score_request": "",
    "v1_decisions_request": "",
    "systemone_decisions": "",
    "v1_rerank_request": "",
    "openai_v1_audio_transcriptions": "",  # multipart: SGLang takes fields that it names
    "openai_v1_embeddings": None,
    "openai_v1_classify": None,
    "encode_request": None,
    "classify_request": None,
}
#: Fields that are searched for a misplaced budget; all others hold content or a client's own keys.
_CONTAINERS = {
    *("sampling_params", "custom_params", "extra_body", "parameters", "options", "instances"),
}
_DEPTH = 4
_NEAR = 0.75  # kv_bugdet is near, kv_transfer_params is not

#: What the headers of the request that is being served ask for.
_asked: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar("longflow_headers")


def asked_by_headers() -> dict[str, Any]:
    """``custom_params`` of the headers, in the task that serves a request; else empty."""
    return _asked.get({})


def read_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, Any]:
    """What the headers ask for, as ``custom_params``.

    Raises
    ------
    BudgetError
        A budget that is not an integer, or a header that is given twice with different values.
    """
    found: dict[str, Any] = {}
    for name, raw in headers:
        key = HEADERS.get(name)
        if key is None:
            continue
        value: Any = raw.decode("latin-1").strip()
        if key == BUDGET_KEY:
            if not re.fullmatch(r"-?[0-9]{1,18}", value):
                raise BudgetError(
                    f"X-KV-Budget: {value:.60}: expected an integer number of tokens", "not_int"
                )
            value = int(value)
        if found.setdefault(key, value) != value:
            raise BudgetError(
                f"{_SHOWN[key]}: {found[key]} and {value}: send one value", "disagreement"
            )
    return found


def merge(params: Any, asked: Mapping[str, Any]) -> Any:
    """``custom_params`` with what the headers ask for; `params` is not changed.

    Raises
    ------
    BudgetError
        The body asks for something else.
    """
    params = {} if params is None else params
    if not isinstance(params, dict):
        return params  # SGLang's own check names it
    for key, value in asked.items():
        if key in params and params[key] != value:
            raise BudgetError(
                f"{_SHOWN[key]}: {value}: custom_params says {key}={params[key]!r:.60}; send one "
                f"of them",
                "disagreement",
            )
    return {**params, **asked}


def apply_headers(obj: Any, preferred: Mapping[str, Any] | None) -> None:
    """Put what the headers ask for into a request's ``sampling_params``: a dict, a list, or None.

    SGLang's --preferred-sampling-params, `preferred`, count where a request has no
    ``custom_params``.
    """
    if not (asked := asked_by_headers()):
        return
    preferred = preferred or {}

    def with_asked(params: Any) -> Any:
        if not isinstance(params, dict | None):
            return params
        own = {} if params is None else params
        given = own.get("custom_params", preferred.get("custom_params"))
        return {**own, "custom_params": merge(given, asked)}

    params = obj.sampling_params
    if isinstance(params, list):
        obj.sampling_params = [with_asked(one) for one in params]
    else:
        obj.sampling_params = with_asked(params)


def misplaced(body: Any, place: str | None) -> str:
    """The first `kv_*` key where SGLang does not read it, and where it belongs; else empty."""
    if place is None:
        return next((f"{key}: {_NO_ROW}" for _, key in _keys(body, "")), "")
    belongs = f"put it into {place.replace('[]', '')}, or " if place else ""
    for path, key in _keys(body, ""):
        if not place or path != place:
            where = f"in {path.replace('[]', '')}" if path else "at the top of the body"
            return f"{key}: is not read {where}; {belongs}{_HEADER_PLACE}"
    return ""


def _keys(body: Any, path: str, depth: int = _DEPTH) -> Iterator[tuple[str, str]]:
    """Path and name of every key that is ours, or nearly, under the fields that may hold one.

    ``sampling_params[]`` is one path, whether a body has one or a list of them.
    """
    if not isinstance(body, dict):
        return
    for key, value in body.items():
        if key in REQUEST_KEYS or (
            key.startswith("kv_") and difflib.get_close_matches(key, REQUEST_KEYS, 1, _NEAR)
        ):
            yield path, key
        if depth and key in _CONTAINERS:
            inner = f"{path}.{key}" if path else key
            inner += "[]" if key == "sampling_params" else ""
            for one in value if isinstance(value, list) else [value]:
                yield from _keys(one, inner, depth - 1)


def _at(body: Any, place: str) -> Iterator[Any]:
    """The ``custom_params`` that a body has where they are read."""
    name, _, rest = place.partition(".")
    value = body.get(name.removesuffix("[]")) if isinstance(body, dict) else None
    for one in value if isinstance(value, list) and name.endswith("[]") else [value]:
        if rest:
            yield from _at(one, rest)
        elif isinstance(one, dict):
            yield one


def error_body(endpoint: str, message: str) -> bytes:
    """A refusal in the form of SGLang's own for this endpoint, status 400."""
    content: dict[str, Any] = {"error": {"message": message}}
    if endpoint == "anthropic_v1_messages":
        content = {
            "type": "error",
            "error": {"type": "invalid_request_error", "message": message},
        }
    elif endpoint.startswith("ollama"):
        content = {"error": message}
    elif endpoint not in ("generate_request", "vertex_generate", "encode_request"):
        content = {"object": "error", "message": message, "type": "BadRequestError"}
        content |= {"param": None, "code": 400}
    return orjson.dumps(content)


class BudgetFields:
    """ASGI middleware: reads the headers, and refuses `kv_*` keys in the wrong place of a body.

    A body is searched for ``"kv_`` and parsed only where it has it; bodies of other routes are not
    looked at.

    Parameters
    ----------
    app
    routes : iterable
        The app's; those of `PLACES` are looked at.
    config : LongFlowConfig or None
        None: no request may ask for a budget.
    count : callable
        Counts a refusal by its reason.
    """

    def __init__(
        self,
        app: App,
        routes: Iterable[Any],
        config: LongFlowConfig | None,
        count: Callable[[str], None],
    ):
        self.app, self.config, self.count = app, config, count
        names = [(getattr(route, "path", ""), getattr(route, "name", "")) for route in routes]
        self.endpoints = {path: name for path, name in names if name in PLACES}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        endpoint = None
        if scope["type"] == "http" and scope["method"] in ("POST", "PUT"):
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            endpoint = self.endpoints.get(path)
        if endpoint is None:
            await self.app(scope, receive, send)
            return
        messages: list[Message] = []
        try:
            asked = self._read_headers(endpoint, scope["headers"])
            body = await _whole(receive, messages)
            if b'"kv_' in body:
                self._check_body(endpoint, body, asked)
        except BudgetError as error:
            if self.config is not None:
                self.count(error.reason)
            await _refuse(send, error_body(endpoint, str(error)))
            return
        token = _asked.set(asked)
        answers = _Answers(send, waits=endpoint.startswith("ollama"))
        try:
            await self.app(scope, _again(messages, receive), answers)
        except BudgetError as error:  # counted where it was raised; Ollama's endpoints catch none
            if answers.started:
                raise
            await _refuse(send, error_body(endpoint, str(error)))
        finally:
            _asked.reset(token)

    def _read_headers(
        self, endpoint: str, headers: Iterable[tuple[bytes, bytes]]
    ) -> dict[str, Any]:
        asked = read_headers(headers)
        if asked and self.config is None:
            raise BudgetError(INACTIVE, "inactive")
        if asked and PLACES[endpoint] is None:
            raise BudgetError(f"{_SHOWN[next(iter(asked))]}: {_NO_ROW}", "misplaced_key")
        if asked and self.config is not None:
            resolve_budget(asked, self.config)
        return asked

    def _check_body(self, endpoint: str, body: bytes, asked: dict[str, Any]) -> None:
        try:
            content = orjson.loads(body)
        except ValueError:
            return  # SGLang says what is wrong with it
        if wrong := misplaced(content, PLACES[endpoint]):
            raise BudgetError(INACTIVE if self.config is None else wrong, "misplaced_key")
        for params in _at(content, PLACES[endpoint] or ""):
            merge(params, asked)


class _Answers:
    """`send` that knows whether an answer has begun; with `waits` only its first byte begins it."""

    def __init__(self, send: Send, *, waits: bool):
        self.send, self.waits, self.started = send, waits, False
        self._held: Message | None = None

    async def __call__(self, message: Message) -> None:
        if self.waits and message["type"] == "http.response.start":
            self._held = message
            return
        self.started = True
        if self._held is not None:
            held, self._held = self._held, None
            await self.send(held)
        await self.send(message)


async def _whole(receive: Receive, messages: list[Message]) -> bytes:
    """The body; `messages` gets what was received, to be received again."""
    chunks = []
    while True:
        message = await receive()
        if message["type"] != "http.request":  # the client is gone
            messages.append(message)
            break
        chunks.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    messages.insert(0, {"type": "http.request", "body": body, "more_body": bool(messages)})
    return body


def _again(messages: list[Message], receive: Receive) -> Receive:
    async def receive_again() -> Message:
        return messages.pop(0) if messages else await receive()

    return receive_again


async def _refuse(send: Send, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
