# SPDX-License-Identifier: Apache-2.0
"""Over HTTP, with text: OpenAI, streaming, stop, n, logprobs, stats, metrics, bad input (6)."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

import harness
from waiting import until

pytestmark = pytest.mark.e2e
REAL_START = True
#: So many tokens that a request runs until it is aborted.
ENDLESS = 90_000
LONG = " ".join(f"Box {i} holds {i * 7 % 13} apples." for i in range(40))


@pytest.fixture(scope="module")
def server(endless_with_tokenizer):
    arguments = ["--model-path", str(endless_with_tokenizer), "--dtype", "float32"]
    arguments += ["--max-total-tokens", "3000", "--chunked-prefill-size", "128"]
    arguments += ["--kv-budget", "96", "--kv-budget-min", "48", "--kv-budget-max", "500"]
    arguments += ["--kv-planned-rows", "62"]  # twice what the pool holds
    arguments += ["--enable-metrics", "--sleep-on-idle", "--max-running-requests", "64"]
    with harness.Server(arguments) as running:
        yield running.wait_ready()


def generate(server, text="Hello there", new_tokens=150, custom_params=None, **body):
    params = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}
    params |= body.pop("sampling_params", {})
    if custom_params is not None:
        params["custom_params"] = custom_params
    return server.request("/generate", {"text": text, "sampling_params": params, **body})


def kv(meta: dict) -> tuple[int, int, int]:
    return meta["kv_budget"], meta["kv_resident_tokens"], meta["kv_overwritten_tokens"]


def test_generate_reports_its_row(server):
    status, answer = generate(server)
    assert status == 200
    stored = answer["meta_info"]["prompt_tokens"] + 149
    assert kv(answer["meta_info"]) == (96, 96, stored - 96)
    assert generate(server, custom_params={"kv_budget": 64})[1]["meta_info"]["kv_budget"] == 64


def test_openai_bodies(server):
    body = {"model": "m", "max_tokens": 120, "temperature": 0, "ignore_eos": True}
    body["custom_params"] = {"kv_budget": 80}
    status, answer = server.request("/v1/completions", {"prompt": "Once upon", **body})
    assert status == 200, answer
    assert kv(answer["metadata"])[:2] == (80, 80)
    chat = {"messages": [{"role": "user", "content": "Hi"}], **body}
    status, answer = server.request("/v1/chat/completions", chat)
    assert status == 200, answer
    assert kv(answer["metadata"])[:2] == (80, 80)
    status, answer = server.request("/v1/completions", {"prompt": "Once", "n": 2, **body})
    assert answer["metadata"]["kv_budget"] == [80, 80]


def test_openai_client(server):
    import openai

    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
    extra = {"custom_params": {"kv_budget": 80}, "ignore_eos": True}
    messages = [{"role": "user", "content": LONG + " How many apples are in box 3?"}]
    stream = client.chat.completions.create(
        model="m", messages=messages, max_tokens=400, stream=True, extra_body=extra
    )
    assert len([chunk for chunk in stream if chunk.choices]) > 10
    with pytest.raises(openai.BadRequestError, match="kv_budget=501"):
        client.completions.create(
            model="m", prompt="x", extra_body={"custom_params": {"kv_budget": 501}}
        )


def test_streaming_reports_grow(server):
    body = {"text": "Hello", "stream": True, "sampling_params": {"temperature": 0}}
    # A busy machine puts the reports of many tokens into one.
    body["sampling_params"] |= {"max_new_tokens": 600, "ignore_eos": True}
    body["sampling_params"]["custom_params"] = {"kv_budget": 400}
    request = urllib.request.Request(
        server.url + "/generate",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    seen = []
    with urllib.request.urlopen(request) as response:
        for line in response:
            if line.startswith(b"data: {"):
                seen.append(kv(json.loads(line[6:])["meta_info"]))
    assert len(seen) > 20
    assert seen == sorted(seen)
    assert seen[0][1] < 400 == seen[-1][1]


def test_stop_string_n_and_logprobs(server):
    _, plain = generate(server, new_tokens=140)
    stop = plain["text"][len(plain["text"]) // 2 :][:6]
    _, stopped = generate(server, new_tokens=140, sampling_params={"stop": [stop]})
    assert stopped["meta_info"]["finish_reason"]["type"] == "stop"
    assert plain["text"].startswith(stopped["text"])
    _, several = generate(server, new_tokens=130, sampling_params={"n": 3})
    assert [item["output_ids"] for item in several] == [several[0]["output_ids"]] * 3
    assert all(item["meta_info"]["kv_resident_tokens"] == 96 for item in several)
    _, scored = generate(server, new_tokens=140, return_logprob=True, top_logprobs_num=2)
    logprobs = scored["meta_info"]["output_token_logprobs"]
    assert len(logprobs) == 140
    assert [token for _, token, _ in logprobs] == plain["output_ids"]


def test_long_prompt_with_input_logprobs(server):
    """Longer than the budget and than a chunk; every input token gets its logprob."""
    _, answer = generate(server, LONG, 60, return_logprob=True, logprob_start_len=0)
    meta = answer["meta_info"]
    assert meta["prompt_tokens"] > 256
    assert len(meta["input_token_logprobs"]) == meta["prompt_tokens"]
    assert meta["kv_cut_tokens"] == meta["prompt_tokens"] - 95


def test_stats(server):
    stats = server.stats()
    assert set(stats) >= {"settings", "pool", "requests"}
    assert stats["settings"]["kv_budget"] == 96
    assert stats["settings"]["kv_pool_bytes"] > 3000 * 1000
    assert stats["settings"]["l2_set_aside_bytes"] == 0  # there is a GPU's cache on a GPU only
    assert stats["settings"]["decode_cuda_graph"] is False  # a CPU
    assert "31 requests fit at the budget, 50 % fewer" in stats["settings"]["capacity_warning"]
    assert set(stats["pool"]) == {
        "total_tokens",
        "available_tokens",
        "evictable_tokens",
        "budgeted_tokens",
    }
    assert stats["pool"]["total_tokens"] == 3000
    body = {"text": "Hello", "sampling_params": {"max_new_tokens": ENDLESS, "ignore_eos": True}}
    request = urllib.request.Request(
        server.url + "/generate",
        data=json.dumps({**body, "stream": True, "rid": "watched"}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request):
        stats = until(lambda: (s := server.stats())["sums"]["saved_tokens"] and s)
        assert stats["sums"]["at_budget_requests"] == 1
        (row,) = stats["requests"]
        assert row["rid"] == "watched" and row["kv_policy"] == "longflow-novel"
        assert row["kv_len"] == row["kv_budget"] == 96 < row["seq_len"]
        assert stats["pool"]["budgeted_tokens"] == 96
    until(lambda: not server.stats()["requests"])  # SGLang aborts it: the client went away


def test_metrics(server):
    generate(server, custom_params={"kv_budget": 5})  # refused
    status, text = server.request("/metrics")
    assert status == 200
    values = dict(re.findall(r"^(sglang_longflow_\w+)(?:\{[^}]*\})? ([\d.e+]+)$", text, re.M))
    assert float(values["sglang_longflow_overwritten_tokens_total"]) > 100
    assert float(values["sglang_longflow_cut_tokens_total"]) > 100
    assert {"sglang_longflow_rows_at_budget", "sglang_longflow_saved_tokens"} <= set(values)
    refusals = re.findall(r"^sglang_longflow_refusals_total\{([^}]*)\}", text, re.M)
    (refused,) = (labels for labels in refusals if 'reason="below_policy_minimum"' in labels)
    (saved,) = re.findall(r"^sglang_longflow_saved_tokens\{([^}]*)\}", text, re.M)
    assert {saved, 'reason="below_policy_minimum"'} == set(refused.split(","))
    assert not re.search(r"^sglang_longflow:", text, re.M)


@pytest.mark.parametrize(
    "accept",
    [
        # Prometheus 2, Prometheus 3, and 3 with legacy names.
        "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,*/*;q=0.1",
        "application/openmetrics-text;version=1.0.0;escaping=underscores;q=0.6,*/*;q=0.1",
    ],
)
def test_metrics_keep_their_names_for_every_scraper(server, accept):
    request = urllib.request.Request(server.url + "/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request) as response:
        text = response.read().decode()
    assert re.search(r"^sglang:num_running_reqs{", text, re.M)
    assert not re.search(r"^sglang_num_running_reqs", text, re.M)


BAD = [
    ({"kv_budget": "many"}, ("kv_budget='many'", "integer")),
    ({"kv_budget": 96.5}, ("kv_budget=96.5", "integer")),
    ({"kv_budget": True}, ("kv_budget=True", "integer")),
    ({"kv_budget": -3}, ("kv_budget=-3", "positive")),
    ({"kv_budget": 501}, ("kv_budget=501", "maximum 500")),
    ({"kv_budget": 40}, ("kv_budget=40", "minimum 48")),
    ({"kv_budget": 20}, ("kv_budget=20", "below 38", "longflow")),
    ({"kv_budget": 0}, ("kv_budget=0", "--kv-budget-allow-full")),
    ({"kv_policy": "oracle"}, ("kv_policy='oracle'", "longflow, streaming")),
    ({"kv_policy": 7}, ("kv_policy=7", "unknown policy")),
]


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_bad_requests_are_400_and_the_server_lives_on(server, path):
    for params, words in BAD:
        body = {
            "/generate": {"text": "x", "sampling_params": {"custom_params": params}},
            "/v1/completions": {"model": "m", "prompt": "x", "custom_params": params},
            "/v1/chat/completions": {
                "model": "m",
                "messages": [{"role": "user", "content": "x"}],
                "custom_params": params,
            },
        }[path]
        status, answer = server.request(path, body)
        assert status == 400, (params, answer)
        assert all(word in json.dumps(answer) for word in words), answer
    assert generate(server, new_tokens=3)[0] == 200


#: The greedy draw of SGLang 0.5.23 takes a row of NaN, this one does not.
DRAWN = {"temperature": 1, "top_p": 0.9}
#: One each of what once ended the server: SGLang's scheduler, or ours.
KILLERS = [
    {"max_new_tokens": 3.7},
    {"max_new_tokens": 4, "top_k": 2**63},
    {"max_new_tokens": 4, "repetition_penalty": 1e-40},
    {"max_new_tokens": 4, "json_schema": '{"$ref": "#"}'},
    {"max_new_tokens": 4, "json_schema": '{"type": "integer", "minimum": 5, "maximum": 1}'},
    {"max_new_tokens": 4, "stop_regex": "["},
    {"max_new_tokens": 4, "n": None},
    {"max_new_tokens": 4, "no_such_parameter": 1},
    {"max_new_tokens": 4, "custom_params": ["kv_budget"]},
    {"max_new_tokens": 40, "min_new_tokens": 9, "stop_token_ids": [10**9, -1]},
    {"max_new_tokens": 40, "min_new_tokens": 9, "stop_token_ids": list(range(49152))},
    {"max_new_tokens": 0, "n": 3},
]


def test_no_request_ends_the_server(server):
    """Beside one that runs all the while, and has its tokens."""
    over = threading.Event()

    def one_after_the_other() -> list:
        found = [generate(server, new_tokens=600)]
        while not over.is_set():
            found.append(generate(server, new_tokens=600))
        return found

    with ThreadPoolExecutor() as pool:
        beside = pool.submit(one_after_the_other)
        try:
            until(lambda: server.stats()["requests"])
            for params in KILLERS:
                status, answer = generate(server, LONG, sampling_params=DRAWN | params)
                told = status == 200 or answer.get("error") or answer.get("message")
                assert told, (params, answer)
                assert generate(server, new_tokens=3)[0] == 200, params
            server.request("/dump_expert_distribution_record", {})
            assert generate(server, new_tokens=3)[0] == 200
        finally:
            over.set()
        for status, answer in beside.result():
            assert status == 200 and answer["meta_info"]["completion_tokens"] == 600


def test_pauses_in_any_order_end_and_requests_go_on(server):
    """SGLang's own pause with abort waits for ever after another pause."""
    with ThreadPoolExecutor() as pool:
        for first in ("in_place", "retract"):
            beside = pool.submit(generate, server, new_tokens=ENDLESS)
            until(lambda: server.stats()["requests"])
            assert server.request("/pause_generation", {"mode": first})[0] == 200
            assert server.stats()["paused"] is True
            assert server.request("/pause_generation", {"mode": "abort"})[0] == 200
            assert server.stats()["paused"] is True  # though no scheduler is
            assert server.request("/continue_generation", {})[0] == 200
            beside.result()  # aborted, and told so
            assert generate(server, new_tokens=3)[0] == 200
    assert server.stats()["paused"] is False


def test_labels_that_nobody_declared_are_not_counted(server):
    assert generate(server, new_tokens=3, custom_labels={"a": "b"})[0] in (200, 400)
    assert generate(server, new_tokens=3)[0] == 200


def test_a_prompt_is_scored_beside_others(server):
    """/v1/score prefills only: a prompt over the budget gets one decode step all the same."""
    with ThreadPoolExecutor() as pool:
        beside = pool.submit(generate, server, new_tokens=200)
        body = {"query": LONG, "items": [" yes", " no"], "label_token_ids": [5, 6], "model": "m"}
        status, answer = server.request("/v1/score", body)
        assert status == 200 and len(answer["scores"]) == 2, answer
        asks = dict(return_logprob=True, token_ids_logprob=[5, 6], new_tokens=20)
        status, answer = generate(server, LONG, **asks)
        assert status == 200, answer
        assert len(answer["meta_info"]["output_token_ids_logprobs"]) == 20
        assert beside.result()[0] == 200


def test_a_request_that_never_fits_is_refused(server):
    """A prompt of 3,100 tokens cannot be prefilled in a pool of 3,000."""
    status, answer = server.request(
        "/generate",
        {"input_ids": harness.prompt(3100, 1), "sampling_params": {"max_new_tokens": 9}},
    )
    assert status == 400 and "3100" in json.dumps(answer)
    assert generate(server, new_tokens=3)[0] == 200


def test_frontend_program(server):
    """sgl.function with a budget per call (SGLang drops custom_params on its own)."""
    import sglang as sgl

    from sglang_longflow.client import frontend

    backend = frontend.BudgetedEndpoint(server.url)

    @sgl.function
    def two_answers(s, question):
        s += question
        s += frontend.gen("short", max_tokens=150, ignore_eos=True, kv_budget=64)
        s += frontend.gen("long", max_tokens=20, ignore_eos=True, kv_budget=400)

    state = two_answers.run(question="Hello there", backend=backend, temperature=0)
    assert state.get_meta_info("short")["kv_budget"] == 64
    assert state.get_meta_info("short")["kv_resident_tokens"] == 64
    assert state.get_meta_info("long")["kv_budget"] == 400
