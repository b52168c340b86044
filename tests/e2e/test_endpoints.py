# SPDX-License-Identifier: Apache-2.0
"""SGLang's endpoints one by one: the budget is kept or refused, and each leaves the pool whole.

What a client's library can ask for is in `test_clients`, what no request may end in `test_http`.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import fuzz_judge
import harness
from waiting import until

pytestmark = pytest.mark.e2e
POOL, BUDGET = 4000, 96
HEADERS = {"X-KV-Budget": "48"}
LONG = "Box 3 holds seven apples. " * 30  # over each budget
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "How many apples?"}]}
BOXES = {"type": "array", "items": {"type": "boolean"}, "minItems": 60, "maxItems": 60}
TOOL = {
    "name": "count",
    "description": "Counts what is in boxes",
    "strict": True,  # its arguments follow the schema
    "parameters": {
        "type": "object",
        "properties": {"boxes": BOXES},
        "required": ["boxes"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def server(tiny_with_tokenizer):
    arguments = ["--model-path", str(tiny_with_tokenizer), "--dtype", "float32"]
    arguments += [f"--max-total-tokens={POOL}", "--served-model-name=tiny"]
    arguments += [f"--kv-budget={BUDGET}", "--kv-budget-allow-full"]
    arguments += ["--tool-call-parser=pythonic", "--random-seed=1"]
    # Random weights would fill JSON with blanks, which a grammar allows.
    arguments += ["--constrained-json-disable-any-whitespace", "--enable-response-store"]
    with harness.Server(arguments) as running:
        yield running.wait_ready()


@pytest.fixture(autouse=True)
def whole(server):
    """After a test nothing runs, every slot is free or in the tree, and no hook has failed."""
    yield
    deadline = time.monotonic() + 60
    while (found := server.stats())["requests"] or found["queued_requests"]:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    while problem := fuzz_judge.pool_problem(server.stats(), POOL):  # a last step may still run
        assert time.monotonic() < deadline, problem
        time.sleep(0.1)
    assert server.stats()["counters"]["failed_hooks"] == 0
    assert server.process.poll() is None


def generate(server, new_tokens: int = 120, budget: int = 48, **params) -> dict:
    sampling = {**harness.greedy(new_tokens, kv_budget=budget), **params}
    return server.generate({"text": "Hello there", "sampling_params": sampling})


def given_up(server) -> int:
    counters = server.stats()["counters"]
    return counters["overwritten_tokens"] + counters["cut_tokens"]


# ------------------------------------------------------------------------------- scores, decisions

CHOICE = {"model": "tiny", "input": LONG}
CHOICE["questions"] = [
    {"id": "a", "type": "choice", "question": "Which?", "options": [{"name": "x"}, {"name": "y"}]},
    {"id": "b", "type": "score", "question": "How full?", "levels": ["empty", "half", "full"]},
    {"id": "c", "type": "yes_no", "question": "Is box 3 empty?"},
]
STATE = {"model": "tiny", "state": LONG}
STATE["questions"] = {
    "kv_budget": {"type": "choice", "criteria": {"x": "one", "y": "two"}},  # a caller's own name
    "b": {"type": "noul", "instructions": "Is box 3 empty?"},
}
SCORE = {"model": "tiny", "query": LONG, "items": [" yes", " no"], "label_token_ids": [5, 6]}
SCORING = {"/v1/decisions": CHOICE, "/v1/systemone": STATE, "/v1/score": SCORE}


@pytest.mark.parametrize("path", SCORING)
def test_prompts_are_scored_whole_whatever_the_budget(server, path):
    """All tokens of a prompt are seen by its last one; the budget is for what comes after."""
    answers = [
        server.request(path, SCORING[path], headers=headers)
        for headers in ({}, HEADERS, {"X-KV-Budget": "0"})
    ]
    assert [status for status, _ in answers] == [200] * 3, answers
    found = [answer.get("answers") or answer["scores"] for _, answer in answers]
    # Scored with a part of the prompt from the tree, sums are in another order.
    for other in found[1:]:
        assert numbers(other) == pytest.approx(numbers(found[0]), rel=1e-3)
    assert len(numbers(found[0])) >= 4


def numbers(value) -> list[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for one in value for number in numbers(one)]
    return [value] if isinstance(value, float) else []


@pytest.mark.parametrize("path", SCORING)
def test_a_budget_of_scores_is_judged_like_any_other(server, path):
    """/v1/systemone ignores a field that it does not know, so a key in its body is refused here."""
    body = SCORING[path]
    for more, headers, words in (
        ({"kv_budget": 48}, {}, "kv_budget: is not read at the top of the body"),
        ({"custom_params": {"kv_budget": 48}}, {}, "kv_budget: is not read in custom_params"),
        ({}, {"X-KV-Budget": "5"}, "kv_budget=5: below 38"),
    ):
        status, answer = server.request(path, {**body, **more}, headers=headers)
        assert status == 400 and words in answer["message"], answer


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/classify", {"text": "x"}),
        ("/encode", {"text": "x"}),
        ("/v1/embeddings", {"model": "tiny", "input": "x"}),
        ("/v1/classify", {"model": "tiny", "input": "x"}),
    ],
)
def test_what_generates_nothing_has_no_budget(server, path, body):
    status, answer = server.request(path, body)
    assert status == 400 and "embedding model" in json.dumps(answer)
    for more, headers in (({}, HEADERS), ({"kv_budget": 48}, {})):
        status, answer = server.request(path, {**body, **more}, headers=headers)
        assert status == 400 and "has no KV budget" in json.dumps(answer), answer


# ------------------------------------------------------------------------------ structured answers


@pytest.mark.parametrize(
    "grammar",
    [
        {"ebnf": 'root ::= ("ab" | "cd"){80}'},
        {"regex": "(ab|cd){80}"},
        {"json_schema": json.dumps(BOXES)},
    ],
    ids=lambda grammar: next(iter(grammar)),
)
def test_grammars_hold_beyond_the_budget(server, grammar):
    answer = generate(server, 400, ignore_eos=False, **grammar)
    meta = answer["meta_info"]
    assert meta["finish_reason"]["type"] == "stop"
    assert meta["kv_resident_tokens"] == 48 and meta["kv_overwritten_tokens"] > 20
    if "json_schema" in grammar:
        assert len(json.loads(answer["text"])) == 60
    else:
        assert {answer["text"][i : i + 2] for i in range(0, 160, 2)} <= {"ab", "cd"}


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called_beyond_the_budget(server, stream):
    body = {**CHAT, "max_tokens": 600, "temperature": 0, "custom_params": {"kv_budget": 64}}
    body["tools"] = [{"type": "function", "function": TOOL}]
    body |= {"tool_choice": "required", "parallel_tool_calls": False}
    if not stream:
        status, answer = server.request("/v1/chat/completions", body)
        assert status == 200, answer
        (call,) = answer["choices"][0]["message"]["tool_calls"]
        arguments, metadata = call["function"]["arguments"], answer["metadata"]
    else:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        status, text = server.request("/v1/chat/completions", body)
        assert status == 200, text
        events = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
        chunks = [json.loads(event) for event in events]
        calls = [
            call
            for chunk in chunks
            for choice in chunk["choices"]
            for call in choice["delta"].get("tool_calls") or ()
        ]
        arguments = "".join(call["function"].get("arguments") or "" for call in calls)
        metadata = chunks[-1]["metadata"]
    assert len(json.loads(arguments)["boxes"]) == 60
    assert metadata["kv_budget"] == metadata["kv_resident_tokens"] == 64
    assert metadata["kv_overwritten_tokens"] > 20


# -------------------------------------------------------------------------- responses that are kept


def test_responses_in_the_background_keep_the_header(server):
    """Its tokens are generated after the request is answered; the budget is the request's still."""
    before = given_up(server)
    body = {"model": "tiny", "input": "One", "max_output_tokens": 150, "temperature": 0}
    status, answer = server.request(
        "/v1/responses", {**body, "background": True, "store": True}, headers=HEADERS
    )
    assert status == 200, answer
    deadline = time.monotonic() + 60
    while answer["status"] in ("queued", "in_progress"):
        assert time.monotonic() < deadline, answer
        time.sleep(0.2)
        status, answer = server.request(f"/v1/responses/{answer['id']}")
        assert status == 200, answer
    assert answer["usage"]["output_tokens"] > 60
    lost = answer["usage"]["input_tokens"] + answer["usage"]["output_tokens"] - 1 - 48
    assert 0 < lost <= given_up(server) - before <= lost + 1
    # The next turn has the first one's text in its prompt.
    follow = {**body, "previous_response_id": answer["id"], "input": "And?"}
    status, second = server.request("/v1/responses", follow, headers=HEADERS)
    assert status == 200, second
    assert second["usage"]["input_tokens"] > answer["usage"]["input_tokens"] + 20


# ---------------------------------------------------------------------------------------- sessions


def test_sessions_are_for_full_kv(server):
    status, name = server.request("/open_session", {"capacity_of_str_len": 2000})
    assert status == 200 and name
    body = {"text": "Hello", "session_params": {"id": name}}
    for params in ({}, {"custom_params": {"kv_budget": 48}}):
        sampling = {**harness.greedy(30), **params}
        status, answer = server.request("/generate", {**body, "sampling_params": sampling})
        assert status == 400 and "sessions are not supported" in json.dumps(answer), answer
    full = server.generate({**body, "sampling_params": harness.greedy(150, kv_budget=0)})
    assert full["meta_info"]["kv_resident_tokens"] == full["meta_info"]["prompt_tokens"] + 149
    assert server.request("/close_session", {"session_id": name})[0] == 200


def test_beams_are_refused(server):
    for budget in (48, 0):
        sampling = harness.greedy(20, kv_budget=budget) | {"beam_width": 2}
        status, answer = server.request("/generate", {"text": "One", "sampling_params": sampling})
        assert status == 400 and "beam_width=2" in json.dumps(answer), answer


# ------------------------------------------------------------------------------ an operator's calls

#: Path, body, statuses. Each while a request runs at its budget, which goes on where `ends` is not
#: said; some have nothing to do on such a server, and must say so.
CALLS: tuple[tuple[str, dict | None, set[int]], ...] = (
    ("/ready", None, {200}),
    ("/ping", None, {200}),
    ("/v1/loads", None, {200}),
    ("/server_info", None, {200}),
    ("/freeze_gc", {}, {200}),
    ("/get_hicache_l3_cache_layout", None, {200}),
    ("/hicache/storage-backend/clear", {}, {200, 400}),
    ("/update_weight_version", {"new_version": "two", "abort_all_requests": False}, {200}),
    ("/begin_weight_update", {}, {200}),
    ("/begin_weight_update", {}, {400}),  # one is open
    ("/end_weight_update", {}, {200}),
    ("/end_weight_update", {}, {400}),
    ("/weights_checker", {"action": "checksum"}, {200}),
    ("/weights_checker", {"action": "nope"}, {400}),
    ("/update_weights_from_disk", {"model_path": "/nowhere"}, {400}),
    ("/update_weights_from_tensor", {"serialized_named_tensors": ["x"]}, {400, 500}),
    ("/get_weights_by_name", {"name": "model.norm.weight", "truncate_size": 3}, {200}),
    ("/slow_down", {"forward_sleep_time": 0.001}, {200}),
    ("/slow_down", {"forward_sleep_time": None}, {200}),
    ("/pd_role_switch", {"role": "prefill"}, {400}),
    ("/load_lora_adapter", {"lora_name": "a", "lora_path": "/nowhere"}, {400}),
    ("/unload_lora_adapter", {"lora_name": "a"}, {400}),
    ("/abort_request", {"rid": "nobody"}, {200}),
)


def test_operators_calls_leave_a_running_row_alone(server):
    with ThreadPoolExecutor() as pool:
        alone = generate(server, 700)
        beside = pool.submit(generate, server, 700)
        for path, body, statuses in CALLS:
            if beside.done():
                assert beside.result()["output_ids"] == alone["output_ids"]
                beside = pool.submit(generate, server, 700)
            status, answer = server.request(path, body, timeout_s=60)
            assert status in statuses, (path, status, answer)
        assert beside.result()["output_ids"] == alone["output_ids"]
        assert beside.result()["meta_info"]["kv_resident_tokens"] == 48


def test_weights_are_loaded_again_in_a_pause(server, tiny_with_tokenizer):
    """The same weights: a full row that waited in its place goes on as if nothing had been."""
    alone = generate(server, 1500)
    with ThreadPoolExecutor() as pool:
        beside = pool.submit(generate, server, 1500)
        until(lambda: server.stats()["sums"]["at_budget_requests"])
        assert server.request("/pause_generation", {"mode": "in_place"})[0] == 200
        assert not beside.done()
        body = {"model_path": str(tiny_with_tokenizer), "flush_cache": False}
        status, answer = server.request("/update_weights_from_disk", body)
        assert status == 200 and answer["success"], answer
        assert server.request("/continue_generation", {})[0] == 200
        assert beside.result()["output_ids"] == alone["output_ids"]


def test_a_profile_is_written_beside_a_full_row(server, tmp_path):
    with ThreadPoolExecutor() as pool:
        beside = pool.submit(generate, server, 60)
        where = {"output_dir": str(tmp_path), "activities": ["CPU"]}
        assert server.request("/start_profile", where, timeout_s=60)[0] == 200
        assert beside.result()["meta_info"]["kv_resident_tokens"] == 48
        assert server.request("/stop_profile", {})[0] == 200
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert written and all(file.stat().st_size > 1000 for file in written)


def test_a_new_weight_version_may_abort_what_runs(server):
    with ThreadPoolExecutor() as pool:
        beside = pool.submit(generate, server, 3000)
        until(lambda: server.stats()["sums"]["at_budget_requests"])
        body = {"new_version": "three", "abort_all_requests": True}
        assert server.request("/update_weight_version", body)[0] == 200
        meta = beside.result()["meta_info"]
    assert meta["finish_reason"]["type"] == "abort" and meta["completion_tokens"] < 3000
    assert generate(server)["meta_info"]["weight_version"] == "three"
