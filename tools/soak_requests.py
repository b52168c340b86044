# SPDX-License-Identifier: Apache-2.0
"""The requests of a soak: what is sent, and what has to come back."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

#: The policies that need no memory of their own: a server of any of them serves them all.
POLICIES = ("longflow", "tova", "streaming", "random")
BUDGETS = (0, 40, 64, 96, 200)  # 0: full KV
NEW_TOKENS = (1, 2, 20, 60, 150)
WORDS = (
    "river stone cloud tower garden winter letter engine forest mirror candle harbor "
    "bridge orange silver window thunder pocket castle meadow"
).split()
PREFIXES = tuple(
    " ".join(random.Random(seed).choices(WORDS, k=45)) for seed in range(4)
)  # shared by many requests


@dataclass(frozen=True)
class Request:
    """One HTTP request; `tokens` are those that its answer must have."""

    path: str
    body: dict[str, Any] | bytes
    tokens: int = 0
    stream: bool = False
    samples: int = 1


def words(generator: random.Random, most: int = 60) -> str:
    return " ".join(generator.choices(WORDS, k=generator.randint(1, most)))


def text(generator: random.Random) -> str:
    start = generator.choice(PREFIXES) + " " if generator.random() < 0.5 else ""
    return start + words(generator)


def custom(generator: random.Random) -> dict[str, Any]:
    """Now and then neither budget nor policy: the server's own."""
    params: dict[str, Any] = {}
    if generator.random() < 0.85:
        params["kv_budget"] = generator.choice(BUDGETS)
    if generator.random() < 0.6:
        params["kv_policy"] = generator.choice(POLICIES)
    return params


def generate(generator: random.Random, rid: str, tokens: int | None = None) -> Request:
    """SGLang's own route, with text or token ids."""
    tokens = tokens or generator.choice(NEW_TOKENS)
    params = {"max_new_tokens": tokens, "ignore_eos": True, "custom_params": custom(generator)}
    params |= {"temperature": generator.choice((0, 0.8))}
    stream = generator.random() < 0.5
    body = {"rid": rid, "stream": stream, "sampling_params": params}
    if generator.random() < 0.3:
        body["input_ids"] = [
            generator.randrange(3, 49000) for _ in range(generator.randint(1, 200))
        ]
    else:
        body["text"] = text(generator)
    return Request("/generate", body, tokens, stream)


def completion(generator: random.Random, rid: str) -> Request:
    tokens, stream = generator.choice(NEW_TOKENS), generator.random() < 0.5
    body = {
        "model": "soak",
        "rid": rid,
        "prompt": text(generator),
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": stream,
        "custom_params": custom(generator),
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    return Request("/v1/completions", body, tokens, stream)


def chat(generator: random.Random, rid: str, messages: list[dict[str, str]]) -> Request:
    tokens, stream = generator.choice((20, 60, 100)), generator.random() < 0.5
    body = {
        "model": "soak",
        "rid": rid,
        "messages": messages,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": stream,
        "custom_params": custom(generator),
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    return Request("/v1/chat/completions", body, tokens, stream)


def prefill_only(generator: random.Random, rid: str) -> Request:
    """Requests of which SGLang prefills a prompt without decoding it: over the budget, mostly."""
    prompt = generator.choice(PREFIXES) + " " + words(generator, 150)
    kind = generator.choice(("no tokens", "samples", "score"))
    if kind == "score":
        body: dict[str, Any] = {"model": "soak", "query": prompt, "label_token_ids": [5, 6, 7]}
        body["items"] = [words(generator, 30) for _ in range(generator.randint(1, 3))]
        return Request("/v1/score", body, samples=len(body["items"]))
    tokens, samples = (0, 1) if kind == "no tokens" else (20, generator.randint(2, 4))
    params = {"max_new_tokens": tokens, "n": samples, "ignore_eos": True, "temperature": 0.8}
    body = {"text": prompt, "sampling_params": params | {"custom_params": custom(generator)}}
    return Request(
        "/generate", body if samples > 1 else body | {"rid": rid}, tokens, False, samples
    )


def malformed(generator: random.Random) -> Request:
    """A request that has to be refused."""

    def sampling(**params: Any) -> dict[str, Any]:
        return {"text": "x", "stream": generator.random() < 0.3, "sampling_params": params}

    def budgets(**params: Any) -> dict[str, Any]:
        return sampling(max_new_tokens=5, custom_params=params)

    message = [{"role": "user", "content": "x"}]
    chats = {"model": "soak", "messages": message}
    return generator.choice(
        (
            Request("/generate", b'{"text": '),
            Request("/generate", b"\xff\xfe\x00"),
            Request("/generate", b"[1, 2, 3]"),
            Request("/generate", {}),
            Request("/generate", {"text": {"a": 1}}),
            Request("/generate", {"text": "x", "sampling_params": "fast"}),
            Request("/generate", {"input_ids": list(range(3, 4003))}),  # longer than the context
            Request("/generate", sampling(max_new_tokens=-1)),
            Request("/generate", sampling(max_new_tokens=5, temperature=-1)),
            Request("/generate", budgets(kv_budget=10**9)),
            Request("/generate", budgets(kv_budget=-1)),
            Request("/generate", budgets(kv_budget="many")),
            Request("/generate", budgets(kv_budget=[64])),
            Request("/generate", budgets(kv_budget=5)),
            Request("/generate", sampling(max_new_tokens=5, custom_params=[{"kv_budget": 64}])),
            Request("/generate", sampling(max_new_tokens=5, custom_params="kv_budget")),
            Request("/generate", sampling(max_new_tokens=5, custom_params=64)),
            Request("/generate", {"input_ids": [3, 10**6], "sampling_params": {"n": 2}}),
            Request("/generate", budgets(kv_policy="oracle")),
            Request("/generate", budgets(kv_policy={"name": "tova"})),
            Request("/v1/completions", {"model": "soak", "prompt": {}}),
            Request("/v1/completions", {"model": "soak", "prompt": "x", "max_tokens": "ten"}),
            Request("/v1/chat/completions", {"model": "soak", "messages": "x"}),
            Request("/v1/chat/completions", chats | {"custom_params": {"kv_budget": 10**9}}),
            Request("/v1/chat/completions", chats | {"custom_params": {"kv_policy": 7}}),
            Request("/v1/chat/completions", b'{"model": "soak", "messages": [}'),
        )
    )


def events(text: str) -> list[str]:
    return [line[6:] for line in text.splitlines() if line.startswith("data: ")]


def problem(request: Request, status: int, text: str) -> str:
    """What is wrong with an answer that should have all of its tokens; empty if nothing."""
    if status != 200:
        return f"status {status}: {text[:300]}"
    if not request.stream:
        answer = json.loads(text)
    else:
        found = events(text)
        if found[-1:] != ["[DONE]"]:
            return f"the stream ended after {len(found)} events: {text[-300:]}"
        answer = json.loads(found[-2])
    if isinstance(answer, dict) and "error" in answer:
        return f"error: {text[-300:]}"
    if request.path == "/v1/score":
        got = len(answer["scores"])
        return "" if got == request.samples else f"{got} scores of {request.samples}"
    if request.path == "/generate" and request.samples > 1:
        counts = [one["meta_info"]["completion_tokens"] for one in answer]
        right = counts == [request.tokens] * request.samples
        return "" if right else f"{counts} tokens of {request.samples} times {request.tokens}"
    if request.path == "/generate":
        got = answer["meta_info"]["completion_tokens"]
    else:
        got = answer["usage"]["completion_tokens"]
    return "" if got == request.tokens else f"{got} tokens of {request.tokens}"


def is_refusal(status: int, text: str) -> bool:
    """A 4xx, or what SGLang's stream has instead: 200 and an error event with code 400."""
    if 400 <= status < 500:
        return True
    found = events(text) if status == 200 else []
    return bool(found) and json.loads(found[0]).get("error", {}).get("code") == 400
