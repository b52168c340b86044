# SPDX-License-Identifier: Apache-2.0
"""Other people's clients against one live server: what each can ask for, and what it is told."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys

import pytest

import harness
import text_model

pytestmark = pytest.mark.e2e
DEFAULT, MOST = 96, 500
QUESTION = [{"role": "user", "content": "How many apples are in box 3?"}]
#: Chat requests think by default on this server, as with Qwen3.
PLAIN = {"chat_template_kwargs": {"enable_thinking": False}}
GREEDY = {"temperature": 0, "max_tokens": 130}
#: For streams: a busy machine puts many tokens into one message.
LONG = {"temperature": 0, "max_tokens": 600}


@pytest.fixture(scope="module")
def model(smollm2, tmp_path_factory):
    return text_model.build(smollm2, tmp_path_factory.mktemp("text-model"))


@pytest.fixture(scope="module")
def server(model):
    arguments = ["--model-path", str(model), "--dtype", "float32", "--served-model-name", "tiny"]
    arguments += ["--max-total-tokens", "4000", "--chunked-prefill-size", "512"]
    arguments += [f"--kv-budget={DEFAULT}", f"--kv-budget-max={MOST}", "--kv-budget-allow-full"]
    arguments += ["--reasoning-parser", "qwen3", "--enable-strict-thinking"]
    # Random weights would fill JSON with blanks, which a grammar allows.
    arguments += ["--constrained-json-disable-any-whitespace"]
    arguments += ["--enable-metrics", "--random-seed", "1"]
    with harness.Server(arguments) as running:
        yield running.wait_ready()


@pytest.fixture
def client(server):
    import openai

    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def lost(server):
    """``lost()``: prompt and output tokens that rows have given up since the last call."""

    def total() -> int:  # not an answer of the last second, which the server may share
        counters = server.stats()["counters"]
        return counters["overwritten_tokens"] + counters["cut_tokens"]

    before = [total()]

    def since() -> int:
        before.append(total())
        return before[-1] - before[-2]

    return since


def custom(**params) -> dict:
    return {"custom_params": params, "ignore_eos": True}


def gone(prompt_tokens: int, output_tokens: int, budget: int) -> int:
    """What a row of that length gives up with a budget."""
    return max(0, prompt_tokens + output_tokens - 1 - budget)


def counts(found: int, expected: int, requests: int = 1) -> bool:
    """Whether counters agree: they count the step that SGLang launches beyond a request's end."""
    return 0 < expected <= found <= expected + requests


# --------------------------------------------------------------------------------- openai package


def test_openai_chat_and_completions(client):
    chat = client.chat.completions.create(
        model="tiny", messages=QUESTION, **GREEDY, extra_body={**custom(kv_budget=64), **PLAIN}
    )
    assert chat.usage.completion_tokens == 130
    assert chat.metadata["kv_budget"] == chat.metadata["kv_resident_tokens"] == 64
    given_up = chat.metadata["kv_overwritten_tokens"] + chat.metadata["kv_cut_tokens"]
    assert given_up == gone(chat.usage.prompt_tokens, 130, 64) > 0
    full = client.completions.create(
        model="tiny", prompt="Once upon a time", **GREEDY, extra_body=custom(kv_budget=0)
    )
    assert full.metadata["kv_budget"] == full.metadata["kv_overwritten_tokens"] == 0
    assert full.metadata["kv_resident_tokens"] == full.usage.prompt_tokens + 129
    # A server default applies where nothing is asked.
    default = client.completions.create(
        model="tiny", prompt="Once upon a time", **GREEDY, extra_body={"ignore_eos": True}
    )
    assert default.metadata["kv_budget"] == DEFAULT
    assert full.choices[0].text != default.choices[0].text


def test_openai_streams_keep_their_budget(client, lost):
    """The counters of the server tell, and the metadata beside the usage, as it grows."""
    chunks = list(
        client.chat.completions.create(
            **{"model": "tiny", "messages": QUESTION, **LONG, "stream": True},
            stream_options={"include_usage": True, "continuous_usage_stats": True},
            extra_body={**custom(kv_budget=64), **PLAIN},
        )
    )
    usage = chunks[-1].usage
    assert usage.completion_tokens == 600 and len(chunks) > 20
    assert counts(lost(), gone(usage.prompt_tokens, 600, 64))
    told = [(c.usage, c.metadata) for c in chunks if "metadata" in (c.model_extra or {})]
    assert len(told) > 20 and told[-1][0] == usage
    for now, metadata in told:
        length = metadata["kv_resident_tokens"] + metadata["kv_overwritten_tokens"]
        assert metadata["kv_budget"] == 64 >= metadata["kv_resident_tokens"]
        assert length == now.prompt_tokens + now.completion_tokens - 1
    whole = client.chat.completions.create(
        model="tiny", messages=QUESTION, **LONG, extra_body={**custom(kv_budget=64), **PLAIN}
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content


@pytest.mark.parametrize("asked", [None, {"include_usage": True}])
def test_openai_streams_of_several_samples(client, asked):
    """One number each, at the end; who does not ask for usage gets SGLang's own chunks."""
    chunks = list(
        client.completions.create(
            **{"model": "tiny", "prompt": "Once upon a time", "n": 2, "stream": True, **GREEDY},
            **({"stream_options": asked} if asked else {}),
            extra_body={**custom(kv_budget=64), "ignore_eos": True},
        )
    )
    told = [c.metadata for c in chunks if "metadata" in (c.model_extra or {})]
    if asked is None:
        assert told == [] and all(chunk.choices for chunk in chunks)
    else:
        (metadata,) = told
        assert metadata["kv_budget"] == metadata["kv_resident_tokens"] == [64, 64]
        assert chunks[-1].metadata == metadata


def test_openai_several_at_once(server):
    import openai

    budgets = [40, 64, 96, 200, 0, 333]

    async def ask_all():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none") as client:
            return await asyncio.gather(
                *(
                    client.completions.create(
                        model="tiny", prompt="The", **GREEDY, extra_body=custom(kv_budget=budget)
                    )
                    for budget in budgets
                )
            )

    for budget, answer in zip(budgets, asyncio.run(ask_all()), strict=True):
        assert answer.metadata["kv_budget"] == budget
        stored = answer.usage.prompt_tokens + 129
        assert answer.metadata["kv_resident_tokens"] == min(budget or stored, stored)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"kv_budget": MOST + 1}, [f"kv_budget={MOST + 1}", f"maximum {MOST}"]),
        ({"kv_budget": 37}, ["kv_budget=37", "below 38"]),
        ({"kv_budget": "64"}, ["kv_budget='64'", "integer"]),
        ({"kv_policy": "best"}, ["kv_policy='best'", "streaming"]),
        ({"kv_bugdet": 64}, ["kv_bugdet", "did you mean kv_budget"]),
    ],
)
def test_openai_wrong_budgets(client, params, words):
    import openai

    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="x", extra_body=custom(**params))
    with pytest.raises(openai.BadRequestError) as in_chat:
        client.chat.completions.create(model="tiny", messages=QUESTION, extra_body=custom(**params))
    for error in (caught.value, in_chat.value):
        assert error.status_code == 400 and all(word in str(error) for word in words), error


def test_openai_n_and_logprobs(client):
    answer = client.chat.completions.create(
        **{"model": "tiny", "messages": QUESTION, "max_tokens": 130, "temperature": 1, "n": 3},
        logprobs=True,
        top_logprobs=2,
        extra_body={**custom(kv_budget=64), **PLAIN},
    )
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert answer.metadata["kv_budget"] == answer.metadata["kv_resident_tokens"] == [64] * 3
    for choice in answer.choices:
        assert len(choice.logprobs.content) == 130
        assert all(entry.logprob <= 0 for entry in choice.logprobs.content)
        assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)


def test_a_list_of_prompts_each_with_its_budget(server):
    params = [
        {**harness.greedy(120, kv_budget=budget), "ignore_eos": True} for budget in (40, 80, 0)
    ]
    answers = server.generate({"text": ["One", "Two", "Three"], "sampling_params": params})
    assert [item["meta_info"]["kv_budget"] for item in answers] == [40, 80, 0]
    assert [item["meta_info"]["kv_overwritten_tokens"] > 0 for item in answers] == [1, 1, 0]


# --------------------------------------------------------------------- structured output, thinking


def test_json_schema_and_regex_with_a_budget(client):
    """The grammar sees tokens, not K/V: what was overwritten does not break it."""
    schema = {
        "type": "object",
        "properties": {
            "boxes": {
                "type": "array",
                "items": {"type": "integer", "minimum": 10, "maximum": 99},
                "minItems": 60,
                "maxItems": 60,
            },
            "done": {"type": "boolean"},
        },
        "required": ["boxes", "done"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        temperature=0,
        max_tokens=900,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "boxes", "schema": schema, "strict": True},
        },
        extra_body={"custom_params": {"kv_budget": 64}, **PLAIN},
    )
    assert answer.choices[0].finish_reason == "stop"
    found = json.loads(answer.choices[0].message.content)
    assert len(found["boxes"]) == 60 and all(10 <= box <= 99 for box in found["boxes"])
    assert isinstance(found["done"], bool)
    assert answer.metadata["kv_resident_tokens"] == 64
    assert answer.metadata["kv_overwritten_tokens"] > 30
    plate = client.completions.create(
        model="tiny",
        prompt="Plates:",
        temperature=0,
        max_tokens=400,
        extra_body={"custom_params": {"kv_budget": 40}, "regex": r"([A-Z]{3}-[0-9]{3};){25}"},
    )
    assert re.fullmatch(r"([A-Z]{3}-[0-9]{3};){25}", plate.choices[0].text)
    assert plate.metadata["kv_overwritten_tokens"] > 20


def test_reasoning_is_split_off_with_a_budget(client):
    """Thinking ends where `thinking_budget`, a neighbour in custom_params, says; then JSON."""
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 50, "maxItems": 50}
    request = {
        "model": "tiny",
        "messages": QUESTION,
        "temperature": 0,
        "max_tokens": 700,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answers", "schema": schema, "strict": True},
        },
        "extra_body": {
            "custom_params": {"kv_budget": 64, "thinking_budget": 90},
            "chat_template_kwargs": {"enable_thinking": True},
        },
    }
    answer = client.chat.completions.create(**request)
    message = answer.choices[0].message
    assert len(json.loads(message.content)) == 50
    assert message.reasoning_content and "</think>" not in message.reasoning_content
    assert answer.usage.completion_tokens > 90 + 50
    # The row was full before thinking ended, and again while the answer was written.
    assert answer.metadata["kv_resident_tokens"] == 64
    assert answer.metadata["kv_overwritten_tokens"] > 90
    streamed = {"reasoning_content": "", "content": ""}
    for chunk in client.chat.completions.create(**request, stream=True):
        for part in streamed if chunk.choices else ():
            streamed[part] += getattr(chunk.choices[0].delta, part, None) or ""
    assert streamed["content"].strip() == message.content.strip()
    assert streamed["reasoning_content"].strip() == message.reasoning_content.strip()


# ------------------------------------------------------------------------------ frontend programs


def test_frontend_fork_and_join(server):
    import sglang as sgl

    from sglang_longflow.client import frontend

    backend = frontend.BudgetedEndpoint(server.url)

    @sgl.function
    def two_ways(s, question):
        s += question
        ways = s.fork(2)
        for number, way in enumerate(ways):
            way += f" Way {number}:"
            way += frontend.gen("way", max_tokens=120, ignore_eos=True, kv_budget=48 + 16 * number)
        s += " One:" + ways[0]["way"] + " Two:" + ways[1]["way"]
        with frontend.kv_budget(80):
            s += frontend.gen("end", max_tokens=100, ignore_eos=True)
        s["budgets"] = [way.get_meta_info("way")["kv_resident_tokens"] for way in ways]

    state = two_ways.run(question="How?", backend=backend, temperature=0)
    assert state["budgets"] == [48, 64]
    meta = state.get_meta_info("end")
    assert meta["kv_budget"] == meta["kv_resident_tokens"] == 80
    assert meta["prompt_tokens"] > 150 and meta["kv_cut_tokens"] > 0  # the joined prompt is cut


def test_frontend_turns_and_batches(server):
    import sglang as sgl

    from sglang_longflow.client import frontend

    backend = frontend.BudgetedEndpoint(server.url)

    @sgl.function
    def talk(s, first):
        s += sgl.user(first)
        s += sgl.assistant(frontend.gen("one", max_tokens=110, ignore_eos=True, kv_budget=64))
        s += sgl.user("And then?")
        s += sgl.assistant(frontend.gen("two", max_tokens=110, ignore_eos=True))

    states = talk.run_batch(
        [{"first": f"Tell me about box {i}."} for i in range(3)],
        backend=backend.with_budget(200),
        temperature=0,
        num_threads=3,
    )
    for state in states:
        assert state.get_meta_info("one")["kv_resident_tokens"] == 64
        second = state.get_meta_info("two")
        assert second["kv_budget"] == second["kv_resident_tokens"] == 200
        assert second["prompt_tokens"] > 110


def test_frontend_streams(server):
    import sglang as sgl

    from sglang_longflow.client import frontend

    @sgl.function
    def story(s):
        s += "Once upon a time" + frontend.gen("story", max_tokens=400, ignore_eos=True)

    backend = frontend.BudgetedEndpoint(server.url, kv_budget=64)
    state = story.run(backend=backend, temperature=0, stream=True)
    parts = list(state.text_iter("story"))
    assert len(parts) > 10 and "".join(parts) == state["story"]
    assert state.get_meta_info("story")["kv_resident_tokens"] == 64


# ------------------------------------------------------------------------------------- benchmarks


def prompt_tokens(server) -> int:
    text = server.request("/metrics")[1]
    found = re.findall(r"^sglang:prompt_tokens_total\{.*\} ([\d.e+]+)$", text, re.M)
    return int(sum(map(float, found)))


def test_sglangs_own_bench_serving(server, model, lost, tmp_path):
    """As it is; for /generate its extra body replaces the sampling parameters as a whole."""
    sampling = harness.greedy(60, kv_budget=48)
    runs = {
        "sglang-oai": ({"custom_params": {"kv_budget": 48}}, 48),
        "sglang": ({"sampling_params": sampling}, 48),
    }
    for backend, (extra, budget) in runs.items():
        before = prompt_tokens(server)
        out = tmp_path / f"{backend}.jsonl"
        command = [sys.executable, "-W", "ignore", "-m", "sglang.bench_serving"]
        command += ["--backend", backend, "--base-url", server.url, "--model", str(model)]
        command += [
            "--served-model-name",
            "tiny",
            "--dataset-name",
            "random-ids",
            "--num-prompts",
            "6",
        ]
        command += ["--random-input-len", "40", "--random-output-len", "60"]
        command += ["--random-range-ratio", "1", "--warmup-requests", "0", "--disable-tqdm"]
        command += ["--output-file", str(out)]
        command += ["--extra-request-body", json.dumps(extra)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        result = json.loads(out.read_text().splitlines()[-1])
        assert result["completed"] == 6 and result["total_output_tokens"] == 360
        # Words of random ids are other ids when they are read again: the server knows how many.
        stored = prompt_tokens(server) - before + 360 - 6
        assert counts(lost(), stored - 6 * budget, 6), backend


def test_longflow_bench_on_a_running_server(server, tmp_path, capsys):
    from sglang_longflow.cli.main import main

    words = f"bench --url {server.url} --out {tmp_path} --budgets 48,full --requests 12"
    words += " --concurrency 3 --input-tokens 20 --output-tokens 60 --policy streaming"
    assert main(words.split()) == 0, capsys.readouterr()
    points = json.loads((tmp_path / "bench.json").read_text())["points"]
    assert [point["budget"] for point in points] == [48, 0]
    assert [point["reached_share"] for point in points] == [1.0, None]
    assert [point["resident_tokens_mean"] for point in points] == [48, 79]
    # None: no look at a busy server came in time (`test_a_look_that_fails_is_no_sample`).
    assert all(point["running_peak"] in (None, 1, 2, 3) for point in points)
    assert (tmp_path / "bench.png").stat().st_size > 10_000
    capsys.readouterr()
    assert main(f"bench --url {server.url} --out {tmp_path} --budgets 501".split()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "kv_budget=501" in line and "maximum 500" in line


# ---------------------------------------------------------- where SGLang has no room for a budget


def message(answer) -> str:
    error = answer.get("error", answer)
    return error if isinstance(error, str) else error["message"]


def test_a_budget_in_the_wrong_place_is_a_400_with_the_right_one(server):
    """SGLang drops an unknown field of a body without a word."""
    chat = {"model": "tiny", "messages": QUESTION, **GREEDY}
    for path, body, place in (
        ("/generate", {"text": "Once", "custom_params": {"kv_budget": 48}}, "in custom_params"),
        ("/generate", {"text": "Once", "sampling_params": {"kv_budget": 48}}, "in sampling_params"),
        ("/v1/completions", {"prompt": "Once", "kv_budget": 48}, "at the top"),
        ("/v1/chat/completions", {**chat, "kv_policy": "streaming"}, "at the top"),
        ("/v1/responses", {"input": "One", "custom_params": {"kv_budget": 48}}, "in custom_params"),
        ("/v1/messages", {**chat, "kv_budget": 48}, "at the top"),
        ("/api/generate", {"prompt": "One", "options": {"kv_budget": 48}}, "in options"),
    ):
        status, answer = server.request(path, body)
        assert status == 400 and f"is not read {place}" in message(answer), (path, answer)
        assert "X-KV-Budget" in message(answer)


def test_headers_where_bodies_have_a_place_too(server):
    headers = {"X-KV-Budget": "48", "X-KV-Policy": "streaming"}
    body = {"text": ["Once", "Twice"], "sampling_params": harness.greedy(120)}
    status, answer = server.request("/generate", body, headers=headers)
    assert status == 200, answer
    found = [one["meta_info"] for one in answer]
    assert [(meta["kv_budget"], meta["kv_policy"]) for meta in found] == [(48, "streaming")] * 2
    for path, more in (
        ("/v1/completions", {"prompt": "Once upon a time"}),
        ("/v1/chat/completions", {"messages": QUESTION, **PLAIN}),
    ):
        body = {"model": "tiny", **GREEDY, "ignore_eos": True, **more}
        status, answer = server.request(path, body, headers={"X-KV-Budget": "64"})
        assert status == 200 and answer["metadata"]["kv_budget"] == 64, answer
        body["custom_params"] = {"kv_budget": 65}
        status, answer = server.request(path, body, headers={"X-KV-Budget": "64"})
        assert status == 400 and "custom_params says kv_budget=65" in message(answer)
    for path in ("/generate", "/v1/responses", "/v1/messages", "/api/generate"):
        status, answer = server.request(path, {}, headers={"X-KV-Budget": "501"})
        assert status == 400 and f"above this server's maximum {MOST}" in message(answer), path


@pytest.mark.parametrize(
    ("path", "prompt"),
    [("/api/generate", {"prompt": "Once upon a time"}), ("/api/chat", {"messages": QUESTION})],
)
@pytest.mark.parametrize(("headers", "budget"), [({}, DEFAULT), ({"X-KV-Budget": "48"}, 48)])
def test_ollama_takes_the_header(server, lost, headers, budget, path, prompt):
    body = {"model": "tiny", "stream": False, "options": {"temperature": 0, "num_predict": 130}}
    status, answer = server.request(path, {**body, **prompt}, headers=headers)
    assert status == 200, answer
    assert answer["eval_count"] > 100
    used = gone(answer["prompt_eval_count"], answer["eval_count"], budget)
    assert counts(lost(), used)
    assert not [key for key in answer if key.startswith("kv_")]


@pytest.mark.parametrize("stream", [False, True])
def test_ollama_is_told_what_is_refused(server, stream):
    body = {"model": "tiny", "prompt": "One", "stream": stream, "options": {"top_k": 2**70}}
    status, answer = server.request("/api/generate", body)
    assert status == 400 and "top_k" in message(answer), answer


def test_cloud_endpoints(server):
    """SageMaker's is SGLang's chat handler, Vertex AI's its /generate."""
    chat = {"model": "tiny", "messages": QUESTION, **GREEDY, **custom(kv_budget=64), **PLAIN}
    status, answer = server.request("/invocations", chat)
    assert status == 200 and answer["metadata"]["kv_resident_tokens"] == 64
    body = {
        "instances": [{"text": "One"}, {"text": "Two"}],
        "parameters": {"sampling_params": harness.greedy(120, kv_budget=48)},
    }
    status, answer = server.request("/vertex_generate", body)
    assert status == 200, answer
    found = [item["meta_info"]["kv_resident_tokens"] for item in answer["predictions"]]
    assert found == [48, 48]


@pytest.mark.parametrize(("headers", "budget"), [({}, DEFAULT), ({"X-KV-Budget": "48"}, 48)])
def test_anthropic_messages_take_the_header(server, lost, headers, budget):
    import anthropic

    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        answer = client.messages.create(
            model="tiny",
            max_tokens=130,
            messages=QUESTION,
            extra_body={"temperature": 0},
            extra_headers=headers,
        )
        assert answer.usage.output_tokens > 100
        cached = answer.usage.cache_read_input_tokens or 0
        used = gone(answer.usage.input_tokens + cached, answer.usage.output_tokens, budget)
        assert counts(lost(), used)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("headers", "budget"), [({}, DEFAULT), ({"X-KV-Budget": "48"}, 48)])
def test_responses_take_the_header(client, lost, headers, budget, stream):
    answer = client.responses.create(
        model="tiny",
        input="How many apples are in box 3?",
        max_output_tokens=130,
        temperature=0,
        stream=stream,
        extra_headers=headers,
    )
    usage = list(answer)[-1].response.usage if stream else answer.usage
    assert counts(lost(), gone(usage.input_tokens, usage.output_tokens, budget))
