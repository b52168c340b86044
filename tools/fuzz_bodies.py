# SPDX-License-Identifier: Apache-2.0
"""What the fuzzer sends: values that matter to a scheduler, mixed with those of the schemas.

Answers are short, because 20,000 of them are wanted; a call whose answer may be long is hung up on
after a while. `fuzz_draw` draws requests from the strategies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from fuzz_call import ANSWERING, EXCLUDED, HANG_UP_S, SESSIONS, TOKEN_KEYS, Call, Limits, longest
from fuzz_fields import (
    GENERATE,
    SAMPLING,
    VOCABULARY,
    custom_params,
    embeddings,
    floats,
    new_tokens,
    prompt_ids,
    prompt_texts,
    sampling_objects,
    token_ids,
    wrong_token_ids,
)
from fuzz_schema import Schemas, chance, junk, often, pick, some_of, spread, texts


class Calls:
    """Strategies of whole requests for one server."""

    def __init__(self, document: Mapping[str, Any], limits: Limits):
        self.limits = limits
        self.paths = document["paths"]
        self.schemas = Schemas(document, {**SAMPLING, **GENERATE, **self._shared()})
        self.fields = self.schemas.fields

    def _shared(self) -> dict[str, st.SearchStrategy]:
        limits = self.limits
        lengths = dict.fromkeys(TOKEN_KEYS, new_tokens)
        weights = pick(limits.model, limits.model, "/nowhere", "", "..")
        return {
            **lengths,
            "input_ids": prompt_ids(limits),
            "input_embeds": embeddings(),
            "sampling_params": sampling_objects(SAMPLING, "max_new_tokens"),
            "model_path": weights,
            "model": pick("m", limits.model, "", "m:adapter", None),
            "stream": st.booleans(),
            "logprobs": pick(True, False, 0, 1, 5, 50, -1, None),
            "top_logprobs": pick(0, 1, 5, 20, 21, -1, VOCABULARY + 1, None),
            "best_of": pick(1, 2, 0, -1, None),
            "label_token_ids": st.lists(often(token_ids, wrong_token_ids, 5), max_size=3),
            "session_id": pick(*SESSIONS),
            "capacity_of_str_len": pick(0, 1, 100, 1000, -1, 2**63),
            "timeout": pick(None, 0.0, 1.0, 30.0, -1.0, float("nan")),
            "lora_name": pick("a", "b", "", "base"),
            "hicache_storage_backend": pick("file", "", "none"),
        }

    def prompts(self) -> st.SearchStrategy:
        return st.one_of(prompt_ids(self.limits), prompt_texts(self.limits), texts)

    def extras(self, component: str, sizes=(0, 0, 0, 1, 1, 2)) -> st.SearchStrategy:
        """A few fields of a component, targeted where there are targeted values."""
        names = some_of(self.schemas.properties(component), sizes)

        @st.composite
        def draw_extras(draw):
            chosen = draw(names)
            return {name: draw(self.schemas.field(component, name)) for name in chosen}

        return draw_extras()

    def generate(self) -> st.SearchStrategy:
        params = sampling_objects(SAMPLING, "max_new_tokens")
        extras = self.extras("GenerateReqInput")

        @st.composite
        def body(draw):
            found: dict[str, Any] = {"sampling_params": draw(params)}
            kind = draw(spread(("ids", 8), ("text", 5), ("batch", 2), ("embeds", 1), ("none", 1)))
            if kind == "ids":
                found["input_ids"] = draw(prompt_ids(self.limits))
            elif kind == "text":
                found["text"] = draw(st.one_of(prompt_texts(self.limits), texts))
            elif kind == "batch":
                count = draw(pick(0, 1, 2, 3))
                found["input_ids"] = [draw(prompt_ids(self.limits)) for _ in range(count)]
                if draw(st.booleans()):
                    found["sampling_params"] = [
                        draw(params) for _ in range(draw(pick(count, count, count, 1, 0)))
                    ]
            elif kind == "embeds":
                found["input_embeds"] = draw(embeddings())
            if chance(draw, 4):
                found |= {"return_logprob": True}
                for name in ("logprob_start_len", "top_logprobs_num", "token_ids_logprob"):
                    if draw(st.booleans()):
                        found[name] = draw(GENERATE[name])
            if chance(draw, 3):
                found["stream"] = True
            if chance(draw, 2):
                for name in draw(some_of(sorted(GENERATE), (1, 1, 2))):
                    found[name] = draw(often(GENERATE[name], junk))
            else:
                found |= draw(extras)
            return found

        return body()

    def _openai(self, component: str, tokens_key: str, base) -> st.SearchStrategy:
        sampling = some_of(sorted(set(SAMPLING) - {"custom_params"}), (0, 0, 1, 2))
        extras = self.extras(component)

        @st.composite
        def body(draw):
            found = {"model": "m", tokens_key: draw(new_tokens), **draw(base)}
            if draw(st.booleans()):
                found["custom_params"] = draw(custom_params)
            for name in draw(sampling):
                found[name] = draw(SAMPLING[name])
            found |= draw(extras)
            if chance(draw, 3):
                found["stream"] = True
            return found

        return body()

    def messages(self) -> st.SearchStrategy:
        content = st.one_of(
            prompt_texts(self.limits),
            texts,
            st.lists(
                st.one_of(
                    st.fixed_dictionaries({"type": st.just("text"), "text": texts}),
                    pick(
                        {"type": "image_url", "image_url": {"url": "data:,"}},
                        {"type": "tool_use", "id": "a", "name": "f", "input": {}},
                        {"type": "tool_result", "tool_use_id": "a", "content": "x"},
                        {"type": "thinking", "thinking": "x", "signature": "y"},
                        {"type": "none"},
                        {},
                    ),
                ),
                max_size=3,
            ),
            junk,
        )
        role = spread(("user", 8), ("assistant", 2), ("system", 2), ("tool", 1), ("x", 1), (5, 1))
        message = st.fixed_dictionaries(
            {"role": role, "content": content},
            optional={"name": texts, "tool_calls": junk, "reasoning_content": texts},
        )
        plain = st.fixed_dictionaries({"role": st.just("user"), "content": texts})
        return often(
            st.lists(st.one_of(plain, message), min_size=1, max_size=3),
            st.one_of(junk, st.just([])),
        )

    def _chat(self, component: str, tokens_key: str = "max_tokens") -> st.SearchStrategy:
        return self._openai(
            component, tokens_key, st.fixed_dictionaries({"messages": self.messages()})
        )

    def _score(self) -> st.SearchStrategy:
        text = st.one_of(prompt_ids(self.limits), prompt_texts(self.limits), texts)
        items = st.one_of(
            texts,
            st.lists(texts, max_size=3),
            st.lists(prompt_ids(self.limits), max_size=3),
        )
        right = st.fixed_dictionaries(
            {
                "query": text,
                "items": items,
                "label_token_ids": self.fields["label_token_ids"],
                "model": st.just("m"),
            },
            optional={"apply_softmax": st.booleans(), "item_first": st.booleans()},
        )
        return st.builds(lambda a, b: {**a, **b}, right, self.extras("ScoringRequest"))

    def _ollama(self, key: str, value: st.SearchStrategy) -> st.SearchStrategy:
        options = st.fixed_dictionaries(
            {"num_predict": new_tokens},
            optional={"temperature": floats, "top_k": SAMPLING["top_k"], "seed": junk},
        )
        return st.fixed_dictionaries(
            {"model": st.just("m"), key: value, "options": often(options, junk)},
            optional={"stream": st.booleans(), "format": pick("json", {"type": "object"}, "x")},
        )

    def _answering(self) -> list[tuple[int, st.SearchStrategy]]:
        """(weight, call) of the routes that generate."""
        prompts = st.fixed_dictionaries({"prompt": often(self.prompts(), junk)})
        inputs = st.fixed_dictionaries({"input": often(st.one_of(texts, self.messages()), junk)})
        vertex = st.fixed_dictionaries(
            {
                "instances": st.lists(
                    st.fixed_dictionaries({"text": prompt_texts(self.limits)}), max_size=2
                ),
                "parameters": st.fixed_dictionaries(
                    {"sampling_params": sampling_objects(SAMPLING, "max_new_tokens")}
                ),
            }
        )
        bodies = [
            (40, "/generate", self.generate()),
            (9, "/v1/completions", self._openai("CompletionRequest", "max_tokens", prompts)),
            (9, "/v1/chat/completions", self._chat("ChatCompletionRequest")),
            (
                5,
                "/v1/responses",
                self._openai("ResponsesRequest", "max_output_tokens", inputs),
            ),
            (5, "/v1/messages", self._chat("AnthropicMessagesRequest")),
            (6, "/v1/score", self._score()),
            (2, "/api/generate", self._ollama("prompt", prompt_texts(self.limits))),
            (2, "/api/chat", self._ollama("messages", self.messages())),
            (1, "/invocations", self._chat("ChatCompletionRequest")),
            (1, "/vertex_generate", vertex),
        ]
        return [(weight, self._post(path, body)) for weight, path, body in bodies]

    def _post(self, path: str, body: st.SearchStrategy) -> st.SearchStrategy:
        """A call; long or streamed answers are hung up on, the latter now and then."""

        @st.composite
        def draw_call(draw):
            content = draw(body)
            hang_up_s = None
            if path in ANSWERING and longest(content) is None:
                hang_up_s = HANG_UP_S
            elif chance(draw, 15):
                hang_up_s = draw(pick(0.001, 0.01, 0.05, 0.3))
            return Call("POST", path, content, hang_up_s=hang_up_s)

        return draw_call()

    def _control(self) -> list[tuple[int, st.SearchStrategy]]:
        """Calls that change what runs; each may fail, none may hurt others for good."""

        def post(path: str, body: st.SearchStrategy, **more: Any) -> st.SearchStrategy:
            return st.builds(lambda content: Call("POST", path, content, **more), body)

        pause = st.builds(
            lambda mode, s: Call("POST", "/pause_generation", {"mode": mode}, resume_s=s),
            pick("retract", "retract", "in_place", "abort", "x", None),
            pick(0.0, 0.05, 0.3, 1.0),
        )
        abort = st.one_of(
            st.builds(lambda rid: {"rid": rid}, pick("one", "two", "unknown", "a" * 300, 5)),
            pick({"abort_all": True}, {"rid": ""}, {}, {"abort_all": "x"}, {"rid": ["one"]}),
            st.fixed_dictionaries(
                {"rid": pick("one", "two")},
                optional={"finished_reason": junk, "abort_message": junk},
            ),
        )
        reload = st.fixed_dictionaries(
            {"model_path": pick(self.limits.model, self.limits.model, "/nowhere")},
            optional={
                "abort_all_requests": st.booleans(),
                "flush_cache": st.just(True),
                "load_format": pick("auto", "safetensors", "x", None),
                "weight_version": texts,
                "keep_pause": st.just(False),
            },
        )
        session = st.fixed_dictionaries(
            {
                "session_id": pick(*SESSIONS),
                "capacity_of_str_len": self.fields["capacity_of_str_len"],
            },
            optional={"streaming": st.booleans(), "timeout": self.fields["timeout"]},
        )
        state = st.one_of(
            st.builds(
                lambda key, value: {"server_args": {key: value}},
                pick("pp_max_micro_batch_size", "max_running_requests", "kv_budget", "x"),
                pick(-1, 0, 10**9, "a", None, 1.5, [], {}),
            ),
            junk,
        )
        flush = st.builds(
            lambda query: Call("POST", "/flush_cache" + query),
            pick("", "", "?timeout=0.2", "?timeout=-1", "?timeout=nan", "?timeout=x"),
        )
        return [
            (4, pause),
            (2, st.just(Call("POST", "/continue_generation", {}))),
            (3, post("/abort_request", abort)),
            (2, flush),
            (1, post("/update_weights_from_disk", reload)),
            (1, post("/set_internal_state", state)),
            (3, post("/open_session", session)),
            (2, post("/close_session", st.builds(lambda s: {"session_id": s}, pick(*SESSIONS)))),
        ]

    def _by_schema(self) -> st.SearchStrategy:
        """Any route of the schema that is not excluded, with a body of its schema."""
        found: list[st.SearchStrategy] = []
        special = {"/pause_generation", "/set_internal_state", "/update_weights_from_disk"}
        for path, methods in sorted(self.paths.items()):
            if path in EXCLUDED or path in special:
                continue
            for method, operation in sorted(methods.items()):
                if method == "head":
                    continue
                content = operation.get("requestBody", {}).get("content", {})
                schema = content.get("application/json", {}).get("schema")
                body = st.none() if schema is None else often(self.schemas.values(schema), junk)
                if schema is None and method == "post":
                    body = st.one_of(st.none(), junk)
                found.append(self._any(method.upper(), path, body))
        return st.one_of(found)

    def _any(self, method: str, path: str, body: st.SearchStrategy) -> st.SearchStrategy:
        filled = path.replace("{model}", "m").replace("{response_id}", "resp_none")

        def make(content: Any, query: str) -> Call:
            hang_up_s = HANG_UP_S if path in ANSWERING and longest(content) is None else None
            return Call(method, filled + query, content, hang_up_s=hang_up_s)

        queries = pick("", "", "?max_age_s=0", "?timeout=0", "?budget=64&users=0", "?include=all")
        return st.builds(make, body, queries if method == "GET" else st.just(""))

    def _raw(self) -> st.SearchStrategy:
        """No JSON, or JSON that is no object, at any route that takes a body."""
        paths = (*ANSWERING, "/v1/score", "/v1/rerank", "/v1/embeddings", "/classify", "/tokenize")
        raw = pick(
            b"",
            b"{",
            b'{"text": ',
            b"\xff\xfe\x00",
            b"[1, 2, 3]",
            b'"text"',
            b"null",
            b"NaN",
            b'{"text": "\\ud800", "sampling_params": {"max_new_tokens": 2}}',
            b'{"text": "a", "text": "b", "sampling_params": {"max_new_tokens": 1}}',
            b'{"text": "a", "sampling_params": {"max_new_tokens": 1e2}}',
            b'{"text": "a", "sampling_params": {"temperature": Infinity, "max_new_tokens": 1}}',
            b"[" * 3000 + b"]" * 3000,
            b'{"a":' * 3000 + b"1" + b"}" * 3000,
            b"0" * 100_000,
        )
        kinds = spread(("application/json", 6), ("text/plain", 1), ("", 1), ("a/b; c=d", 1))
        return st.builds(
            lambda path, body, kind: Call("POST", path, body, kind, hang_up_s=HANG_UP_S),
            st.sampled_from(paths),
            raw,
            kinds,
        )

    def strategy(self) -> st.SearchStrategy:
        """One request of the whole mix."""
        weighted = [*self._answering(), *self._control(), (14, self._by_schema()), (3, self._raw())]
        by_number = [strategy for weight, strategy in weighted for _ in range(weight)]
        return st.integers(0, len(by_number) - 1).flatmap(lambda number: by_number[number])
