# SPDX-License-Identifier: Apache-2.0
"""Budgets in headers and in the wrong place of a body, on an app of their own. No SGLang server."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from starlette.middleware import Middleware

from sglang_longflow.core import http_budget
from sglang_longflow.core.request import INACTIVE
from sglang_longflow.errors import BudgetError
from sglang_longflow.settings.config import LongFlowConfig

CONFIG = LongFlowConfig(kv_budget=96, kv_policy="longflow", kv_budget_min=48, kv_budget_max=500)
#: Path by SGLang's function; the places are those of its request models.
PATHS = {
    "generate_request": "/generate",
    "openai_v1_completions": "/v1/completions",
    "openai_v1_chat_completions": "/v1/chat/completions",
    "v1_responses_request": "/v1/responses",
    "anthropic_v1_messages": "/v1/messages",
    "openai_v1_embeddings": "/v1/embeddings",
    "vertex_generate": "/vertex_generate",
    "ollama_generate": "/api/generate",
}


def make(config=CONFIG):
    """An app that answers with the body that reached it and the ``custom_params`` of headers."""
    app, refused = FastAPI(), []

    async def endpoint(request: Request):
        body = await request.body()
        return {"body": body.decode(), "asked": http_budget.asked_by_headers()}

    for name, path in {**PATHS, "health_generate": "/health"}.items():
        app.post(path, name=name)(endpoint)
        app.put(path, name=name)(endpoint)
    middleware = Middleware(
        http_budget.BudgetFields, routes=app.routes, config=config, count=refused.append
    )
    app.user_middleware.append(middleware)
    client = TestClient(app)
    client.refused = refused
    return client


@pytest.fixture
def client():
    return make()


def message(answer) -> str:
    assert answer.status_code == 400, answer.text
    content = answer.json()
    error = content.get("error", content)
    text = error if isinstance(error, str) else error["message"]
    assert "\n" not in text
    return text


HERE = {
    "generate_request": {"sampling_params": {"custom_params": {"kv_budget": 64}}},
    "openai_v1_completions": {"custom_params": {"kv_budget": 64}},
    "openai_v1_chat_completions": {"custom_params": {"kv_budget": 64, "mine": [1]}},
    "vertex_generate": {"parameters": {"sampling_params": {"custom_params": {"kv_budget": 64}}}},
}
TOP = "at the top of the body"


@pytest.mark.parametrize("endpoint", HERE)
def test_a_budget_in_its_place_passes_as_it_is(client, endpoint):
    answer = client.post(PATHS[endpoint], json=HERE[endpoint])
    assert json.loads(answer.json()["body"]) == HERE[endpoint]
    assert answer.json()["asked"] == {} and client.refused == []


@pytest.mark.parametrize(
    ("endpoint", "body", "where", "belongs"),
    [
        ("openai_v1_chat_completions", {"kv_budget": 64}, TOP, "put it into custom_params"),
        ("openai_v1_completions", {"kv_policy": "tova"}, TOP, "put it into custom_params"),
        (
            "openai_v1_chat_completions",
            {"extra_body": {"custom_params": {"kv_budget": 64}}},
            "in extra_body.custom_params",
            "put it into custom_params",
        ),
        (
            "openai_v1_completions",
            {"sampling_params": {"custom_params": {"kv_budget": 64}}},
            "in sampling_params.custom_params",
            "put it into custom_params",
        ),
        ("generate_request", {"kv_budget": 64}, TOP, "into sampling_params.custom_params"),
        (
            "generate_request",
            {"custom_params": {"kv_budget": 64}},
            "in custom_params",
            "into sampling_params.custom_params",
        ),
        (
            "generate_request",
            {"sampling_params": {"kv_budget": 64}},
            "in sampling_params",
            "into sampling_params.custom_params",
        ),
        (
            "generate_request",
            {"sampling_params": [{}, {"kv_budget": 64}]},
            "in sampling_params",
            "into sampling_params.custom_params",
        ),
        (
            "vertex_generate",
            {"parameters": {"custom_params": {"kv_budget": 64}}},
            "in parameters.custom_params",
            "into parameters.sampling_params.custom_params",
        ),
        ("vertex_generate", {"instances": [{"kv_budget": 1}]}, "in instances", "into parameters."),
        ("v1_responses_request", {"custom_params": {"kv_budget": 64}}, "in custom_params", "the h"),
        ("anthropic_v1_messages", {"kv_budget": 64}, TOP, "send the header X-KV-Budget"),
        ("ollama_generate", {"options": {"kv_budget": 64}}, "in options", "send the header"),
    ],
)
def test_a_budget_in_another_place_is_refused_with_its_place(
    client, endpoint, body, where, belongs
):
    text = message(client.post(PATHS[endpoint], json=body))
    assert f": is not read {where}; " in text and belongs in text and "X-KV-Budget" in text
    assert client.refused == ["misplaced_key"]


def test_an_endpoint_that_generates_nothing_has_no_budget(client):
    for more in ({"json": {"kv_budget": 64}}, {"json": {}, "headers": {"X-KV-Budget": "64"}}):
        assert "generates nothing" in message(client.post("/v1/embeddings", **more))


def test_a_misspelt_key_is_refused_and_other_peoples_keys_are_not(client):
    assert "kv_bugdet: is not read" in message(client.post("/generate", json={"kv_bugdet": 9}))
    for body in (
        {"kv_transfer_params": {"kv_budget": 1}},  # as vLLM's routers send
        {"metadata": {"kv_budget": "64"}},
        {"messages": [{"role": "user", "content": '{"kv_budget": 64}'}]},
        {"text": '"kv_budget"'},
        {"custom_params": {"mine": 1}},
        [{"kv_budget": 64}],
    ):
        answer = client.post("/generate", json=body)
        assert answer.status_code == 200 and json.loads(answer.json()["body"]) == body


def test_what_is_no_json_reaches_sglang_as_it_is(client):
    for body in (b'{"kv_budget": ', b"", b'--x\r\n"kv_', b"[" * 100_000 + b'"kv_budget"'):
        answer = client.request("POST", "/generate", content=body)
        assert answer.json()["body"] == body.decode()


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        ("generate_request", {"error"}),
        ("openai_v1_chat_completions", {"object", "message", "type", "param", "code"}),
        ("anthropic_v1_messages", {"type", "error"}),
        ("ollama_generate", {"error"}),
    ],
)
def test_a_refusal_has_the_form_of_its_endpoint(client, endpoint, fields):
    answer = client.post(PATHS[endpoint], json={"kv_budget": 64})
    assert answer.headers["Content-Type"] == "application/json"
    assert set(answer.json()) == fields and "kv_budget" in message(answer)


# headers


@pytest.mark.parametrize("endpoint", [e for e in PATHS if e != "openai_v1_embeddings"])
def test_headers_are_read_on_every_endpoint_that_generates(client, endpoint):
    headers = {"X-KV-Budget": " 64 ", "x-kv-policy": "streaming"}
    for send in (client.post, client.put):
        answer = send(PATHS[endpoint], json={"a": 1}, headers=headers)
        assert answer.json()["asked"] == {"kv_budget": 64, "kv_policy": "streaming"}
        assert json.loads(answer.json()["body"]) == {"a": 1}
    assert client.post(PATHS[endpoint], json={}).json()["asked"] == {}


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"X-KV-Budget": "many"}, "X-KV-Budget: many: expected an integer"),
        ({"X-KV-Budget": "64.0"}, "X-KV-Budget: 64.0: expected an integer"),
        ({"X-KV-Budget": ""}, "X-KV-Budget: : expected an integer"),
        ({"X-KV-Budget": "9" * 5000}, "expected an integer"),
        ({"X-KV-Budget": "-1"}, "kv_budget=-1: expected a positive number"),
        ({"X-KV-Budget": "47"}, "kv_budget=47: below this server's minimum 48"),
        ({"X-KV-Budget": "501"}, "kv_budget=501: above this server's maximum 500"),
        ({"X-KV-Budget": "0"}, "kv_budget=0: full KV is not allowed"),
        ({"X-KV-Policy": "none"}, "kv_policy='none': unknown policy"),
        ([("X-KV-Budget", "64"), ("X-KV-Budget", "65")], "X-KV-Budget: 64 and 65: send one"),
    ],
)
def test_wrong_headers_are_400(client, headers, words):
    assert words in message(client.post("/v1/messages", json={}, headers=headers))
    assert len(client.refused) == 1


@pytest.mark.parametrize("endpoint", HERE)
def test_a_header_and_a_body_must_agree(client, endpoint):
    path, body = PATHS[endpoint], HERE[endpoint]
    assert client.post(path, json=body, headers={"X-KV-Budget": "64"}).status_code == 200
    text = message(client.post(path, json=body, headers={"X-KV-Budget": "65"}))
    assert text == "X-KV-Budget: 65: custom_params says kv_budget=64; send one of them"


def test_one_of_several_bodies_must_agree_too(client):
    params = [{"custom_params": {"kv_budget": n}} for n in (64, 65)]
    answer = client.post(
        "/generate", json={"sampling_params": params}, headers={"X-KV-Budget": "64"}
    )
    assert "custom_params says kv_budget=65" in message(answer)


def test_other_routes_are_left_alone(client):
    answer = client.post("/health", json={"kv_budget": 1}, headers={"X-KV-Budget": "many"})
    assert answer.status_code == 200 and answer.json()["asked"] == {}


def test_a_server_without_a_budget_says_what_it_says_of_custom_params():
    client = make(None)
    assert message(client.post("/generate", json={"kv_budget": 64})) == INACTIVE
    assert message(client.post("/generate", json={}, headers={"X-KV-Budget": "64"})) == INACTIVE
    assert client.post("/generate", json={"text": "a"}).status_code == 200
    assert client.refused == []  # it has no such metric


def test_a_large_body_is_searched_and_not_parsed(client, monkeypatch):
    monkeypatch.setattr(http_budget.orjson, "loads", lambda body: pytest.fail("it was parsed"))
    body = {"text": " kv_budget" * 1_000_000, "sampling_params": {"n": 1}}
    assert client.post("/generate", json=body).status_code == 200


def test_a_body_comes_in_pieces_and_the_client_may_go():
    """What follows the body is left to the app: SGLang waits there for a client that goes."""
    pieces = [{"type": "http.request", "body": b'{"kv_bu', "more_body": True}]
    pieces += [{"type": "http.request", "body": b'dget": 1}', "more_body": True}]
    got, sent = [], []

    async def app(scope, receive, send):
        while (one := await receive())["type"] != "http.disconnect":
            got.append(one)

    async def call(messages):
        async def receive():
            return messages.pop(0)

        async def send(one):
            sent.append(one)

        scope = {"type": "http", "method": "POST", "path": "/generate", "headers": []}
        route = SimpleNamespace(path="/generate", name="generate_request")
        await http_budget.BudgetFields(app, [route], CONFIG, lambda reason: None)(
            scope, receive, send
        )

    gone = {"type": "http.disconnect"}
    asyncio.run(call([{"type": "http.request", "body": b"{}", "more_body": False}, gone]))
    assert [one["body"] for one in got] == [b"{}"] and sent == []
    asyncio.run(call([*pieces, {"type": "http.request", "body": b"", "more_body": False}]))
    assert [one.get("status") for one in sent] == [400, None]
    got.clear()
    asyncio.run(call([{"type": "http.request", "body": b"{", "more_body": True}, gone]))
    assert got == [{"type": "http.request", "body": b"{", "more_body": True}]


@pytest.mark.parametrize(
    ("endpoint", "stream", "begun", "status"),
    [
        ("ollama_generate", False, False, 400),
        ("ollama_chat", True, False, 400),  # it streams unless told otherwise
        ("ollama_chat", True, True, None),
        ("generate_request", False, False, 400),
        ("generate_request", True, False, None),
    ],
)
def test_a_refusal_behind_an_endpoint_is_400_unless_the_answer_has_begun(
    endpoint, stream, begun, status
):
    async def events():
        if begun:
            yield b"{}\n"
        raise BudgetError("kv_budget=9999: over the model's context", "above_context")

    async def answer():
        if stream:
            return StreamingResponse(events())
        async for _ in events():
            pass

    app = FastAPI()
    app.post("/asked", name=endpoint)(answer)
    app.add_middleware(
        http_budget.BudgetFields, routes=app.routes, config=CONFIG, count=lambda reason: None
    )
    client = TestClient(app)
    if status is None:
        with pytest.raises(BudgetError):
            client.post("/asked")
    else:
        assert "over the model's context" in message(client.post("/asked"))


def test_an_answer_that_streams_is_passed_on_whole():
    async def answer():
        async def events():
            yield b"a"
            yield b"b"

        return StreamingResponse(events(), headers={"x-one": "1"})

    app = FastAPI()
    app.post("/asked", name="ollama_chat")(answer)
    app.add_middleware(
        http_budget.BudgetFields, routes=app.routes, config=CONFIG, count=lambda reason: None
    )
    answer = TestClient(app).post("/asked")
    assert (answer.status_code, answer.text, answer.headers["x-one"]) == (200, "ab", "1")


# into SGLang's request


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, {"custom_params": {"kv_budget": 64}}),
        ({"n": 2}, {"n": 2, "custom_params": {"kv_budget": 64}}),
        ({"custom_params": None}, {"custom_params": {"kv_budget": 64}}),
        ({"custom_params": {"a": 1}}, {"custom_params": {"a": 1, "kv_budget": 64}}),
        ([{}, {"custom_params": {"kv_budget": 64}}], [{"custom_params": {"kv_budget": 64}}] * 2),
        ({"custom_params": [1]}, {"custom_params": [1]}),  # SGLang's own check names it
    ],
)
def test_headers_reach_every_prompt_of_a_request(given, wanted):
    before = json.dumps(given)
    obj = SimpleNamespace(sampling_params=given)
    token = http_budget._asked.set({"kv_budget": 64})
    try:
        http_budget.apply_headers(obj, None)
    finally:
        http_budget._asked.reset(token)
    assert obj.sampling_params == wanted and json.dumps(given) == before


def test_an_operators_preferred_params_stay():
    preferred = {"custom_params": {"thinking_budget": 9}}
    obj = SimpleNamespace(sampling_params={})
    token = http_budget._asked.set({"kv_budget": 64})
    try:
        http_budget.apply_headers(obj, preferred)
    finally:
        http_budget._asked.reset(token)
    assert obj.sampling_params["custom_params"] == {"thinking_budget": 9, "kv_budget": 64}


def test_without_headers_nothing_is_touched():
    http_budget.apply_headers(None, None)


def test_a_disagreement_is_a_budget_error():
    with pytest.raises(BudgetError, match="X-KV-Budget: 64: custom_params says kv_budget=65"):
        http_budget.merge({"kv_budget": 65}, {"kv_budget": 64})


# SGLang's own app
#: Routes that answer no request for tokens or scores: an operator's, and those that only read text.
NO_ANSWERS = {
    *("add_external_corpus", "remove_external_corpus", "flush_cache", "freeze_gc_async"),
    *("attach_hicache_storage_backend", "clear_hicache_storage_backend", "configure_logging"),
    *("start_profile_async", "stop_profile_async", "set_trace_level", "set_internal_state"),
    *(f"{verb}_expert_distribution_record_async" for verb in ("start", "stop", "dump")),
    *(f"update_weights_from_{source}" for source in ("disk", "tensor", "distributed", "ipc")),
    *("begin_weight_update", "end_weight_update", "update_weight_version", "check_weights"),
    *("init_weights_update_group", "destroy_weights_update_group", "get_weights_by_name"),
    *("init_weights_send_group_for_remote_instance", "send_weights_to_remote_instance"),
    *("release_memory_occupation", "resume_memory_occupation", "slow_down", "pd_role_switch"),
    *("load_lora_adapter", "load_lora_adapter_from_tensors", "unload_lora_adapter"),
    *("open_session", "close_session", "abort_request", "pause_generation"),
    *("continue_generation", "v1_cancel_responses", "ollama_show"),
    *("parse_function_call_request", "separate_reasoning_request", "anthropic_v1_count_tokens"),
    *("openai_v1_tokenize", "openai_v1_detokenize"),
}


@pytest.mark.sglang
def test_every_endpoint_that_is_named_exists():
    from sglang.srt.entrypoints.http_server import app

    names = {getattr(route, "name", "") for route in app.routes}
    assert set(http_budget.PLACES) - names == set()
    posts = {r.name for r in app.routes if {"POST", "PUT"} & set(getattr(r, "methods", None) or ())}
    assert set(http_budget.PLACES) <= posts
    assert posts - set(http_budget.PLACES) == NO_ANSWERS, "does a new route generate?"
    # As the server makes it: some of the app's routes have neither path nor name.
    made = http_budget.BudgetFields(app, app.routes, CONFIG, print)
    assert set(made.endpoints.values()) == set(http_budget.PLACES)
    assert {"/generate", "/v1/messages", "/api/generate"} <= set(made.endpoints)
