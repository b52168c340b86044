# SPDX-License-Identifier: Apache-2.0
"""What the fuzzer sends: values that matter to a scheduler, mixed with those of the schemas.

A request comes from a strategy of `calls`. Prompts lie around the budget, the pool and the context
of the server that is asked (`Limits`). Answers are short, because 20,000 of them are wanted; a call
whose answer may be long is hung up on after a while.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from fuzz_schema import JUNK, Schemas, junk, often, some_of, texts

VOCABULARY = 49152
HIDDEN = 256
#: An answer of at most so many tokens has to come; longer ones are hung up on.
SHORT_TOKENS = 64
HANG_UP_S = 2.0
SWEEP_HANG_UP_S = 0.5
#: So many requests are drawn from one seed; hypothesis gives up some time after.
PART = 100
SESSIONS = ("s0", "s1", "s2")

#: Routes that are not asked, each with the reason.
EXCLUDED: dict[str, str] = {
    "/start_profile": "profiles by design: writes a trace for every step, and slows all of them",
    "/stop_profile": "belongs to /start_profile",
    "/slow_down": "sleeps in every step by design, for as long as it is told",
    "/configure_logging": "writes dumps and logs of whole requests by design",
    "/set_trace_level": "belongs to tracing, which needs an OpenTelemetry collector",
    "/release_memory_occupation": "lets go of weights and pool by design until resumed",
    "/resume_memory_occupation": "belongs to /release_memory_occupation",
    "/init_weights_update_group": "waits in the scheduler for a trainer to join, by design",
    "/init_weights_send_group_for_remote_instance": "waits in the scheduler for another server",
    "/send_weights_to_remote_instance": "belongs to /init_weights_send_group_for_remote_instance",
    "/v1/audio/transcriptions": "multipart uploads to a speech model; no JSON body",
}
#: Bodies that change what a neighbour's tokens are, or when, by design.
DESTRUCTIVE = (
    '"reset_tensors"',  # /weights_checker: random weights
    '"dummy"',  # load_format of /update_weights_from_disk: random weights
)


@dataclass(frozen=True)
class Limits:
    """The lengths at which a server's behaviour changes."""

    budget_tokens: int
    pool_tokens: int
    context_tokens: int
    model: str
    radix_cache: bool = True


@dataclass(frozen=True)
class Call:
    """One HTTP request. `body` None sends none; bytes are sent as they are."""

    method: str
    path: str
    body: Any = None
    content_type: str = "application/json"
    hang_up_s: float | None = None
    resume_s: float | None = None  # after this /pause_generation, continue so much later

    def payload(self) -> bytes | None:
        if self.body is None or isinstance(self.body, bytes):
            return self.body
        return json.dumps(self.body).encode()

    def to_json(self) -> dict[str, Any]:
        found = {key: value for key, value in vars(self).items() if value is not None}
        if isinstance(self.body, bytes):
            found["body"] = {"hex": self.body.hex()}
            found["raw"] = True
        return found

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Call:
        values = {key: found[key] for key in found if key in cls.__dataclass_fields__}
        if found.get("raw"):
            values["body"] = bytes.fromhex(found["body"]["hex"])
        return cls(**values)


def _pick(*values: Any) -> st.SearchStrategy:
    return st.sampled_from(values)


def _chance(draw, one_in: int) -> bool:
    """True about once in `one_in`; hypothesis prefers the ends of a range, so take its middle."""
    return draw(st.integers(0, one_in - 1)) == one_in // 2


KV_PARAMS = {
    "kv_budget": often(
        _pick(48, 48, 64, 96, 0, 38, 200), _pick(-1, 5, 37, 10**9, 2**70, "48", 48.0, True, None)
    ),
    "kv_policy": often(
        _pick("longflow", "tova", "streaming", "random", "longflow-novel", "longflow-peak"),
        _pick("", "LongFlow", "oracle", "h2o", "rkv", None, 7, ["tova"], {"name": "tova"}),
    ),
    "kv_buget": junk,
    "__req__": junk,
    "other": junk,
}


@st.composite
def _kv_object(draw):
    names = draw(st.lists(_pick("kv_budget", "kv_budget", "kv_policy"), max_size=2, unique=True))
    if _chance(draw, 8):
        names += [draw(_pick("kv_buget", "__req__", "other"))]
    return {name: draw(KV_PARAMS[name]) for name in names}


custom_params = st.one_of(
    _kv_object(),
    _kv_object(),
    _kv_object(),
    st.one_of(
        st.none(),
        texts,
        _pick(5, 0, 1.5, True, float("nan"), [], [[]], [None], {"kv_budget": {"a": [48]}}),
        st.lists(_kv_object(), min_size=1, max_size=2),
        st.dictionaries(_pick("kv_budget", "kv_policy", "kv_x", "a"), junk, max_size=2),
    ),
)
token_ids = _pick(3, 5, 100, 49151, 49151, 2, 0, 1)
wrong_token_ids = _pick(-1, -(2**31), VOCABULARY, 10**6, 2**31, 2**63 - 1, 2**63, 2**64, 1.5, True)
grammars = {
    "regex": _pick(
        "[0-9]+",
        "(yes|no)",
        "a{3}",
        "",
        "[",
        "(a",
        "*",
        "a{1,20000}",
        "\\p{Greek}+",
        "(?=a)b",
        "(a)\\1",
        "[^\\x00-\\uffff]",
        "(" * 200 + "a" + ")" * 200,
        "\ud800",
    ),
    "json_schema": _pick(
        '{"type": "object"}',
        '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}',
        "{}",
        "true",
        "{",
        "null",
        "[]",
        "5",
        '{"type": "nonsense"}',
        '{"$ref": "#"}',
        '{"$ref": "#/definitions/none"}',
        '{"enum": []}',
        '{"type": "integer", "minimum": 5, "maximum": 1}',
        '{"type": "string", "pattern": "["}',
        '{"anyOf": ' + "[" * 60 + "]" * 60 + "}",
        {"type": "object"},
        "$$ANY$$",
    ),
    "ebnf": _pick(
        'root ::= "yes" | "no"',
        "root ::= [0-9]+",
        "root ::=",
        "x ::= y",
        'root ::= root "a"',
        'root ::= "a" root',
        "nonsense",
        "",
    ),
    "structural_tag": _pick(
        '{"type": "structural_tag", "format": {"type": "const_string", "value": "hi"}}',
        '{"structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}], "triggers": ["<a>"]}',
        '{"structures": [], "triggers": []}',
        '{"type": "structural_tag"}',
        '{"type": "structural_tag", "format": {"type": "regex", "pattern": "["}}',
        "{}",
        "[]",
        "{",
        "5",
    ),
}
bad_regex = _pick("a+", "(yes|no)", ".", "", "[", "(a", "*", "a{1,5}", "a{99999}", "(?P<x>a)(?P=x)")
#: A finite float, on the border of what is allowed, or beyond it.
_floats = _pick(0, 0.0, 1, 1.0, 0.5, 0.9, 1e-9, 2, -2, 2.5, -1, 1e30, float("nan"), float("inf"))

#: Fields of SGLang's `SamplingParams`.
SAMPLING: dict[str, st.SearchStrategy] = {
    "min_new_tokens": _pick(0, 1, 2, 4, 8, 50, 3000, -1, 2**40),
    "n": _pick(1, 2, 2, 3, 5, 0, -1, None, 1.5),
    "temperature": _floats,
    "top_p": _floats,
    "top_k": _pick(1, -1, 5, 0, VOCABULARY, 10**9, 2**31, 2**63, -2, 1.5),
    "min_p": _floats,
    "frequency_penalty": _floats,
    "presence_penalty": _floats,
    "repetition_penalty": _floats,
    "stop": _pick("a", ["a", "b"], "", [""], [], "\ud800", "x" * 2000, ["a"] * 40, [5], 5, [None]),
    "stop_token_ids": st.one_of(st.lists(st.one_of(token_ids, wrong_token_ids), max_size=3), junk),
    "stop_regex": st.one_of(bad_regex, st.lists(bad_regex, max_size=2)),
    **grammars,
    "ignore_eos": st.booleans(),
    "skip_special_tokens": st.booleans(),
    "spaces_between_special_tokens": st.booleans(),
    "no_stop_trim": st.booleans(),
    "stream_interval": _pick(1, 3, 100, 0, -1, -5, 2**40, 1.5),
    "logit_bias": st.one_of(
        st.dictionaries(
            _pick("5", "100", "49151", "-1", "49152", "1e3", "a", ""),
            _pick(0, 1.0, -100, 100, 1e30, float("nan"), float("inf"), None, "a"),
            max_size=2,
        ),
        junk,
    ),
    "sampling_seed": _pick(0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64, 1.5, "a"),
    "custom_params": custom_params,
    "stop_strs": _pick("a", ["a"], [5], {}),
    "stop_regex_strs": _pick("a", ["["], [5]),
    "stop_str_max_len": _pick(0, -1, 2**40),
    "stop_regex_max_len": _pick(0, -1, 2**40),
    "is_normalized": st.booleans(),
    "unknown_field": junk,
}
short_tokens = _pick(1, 1, 2, 3, 4, 4, 8, 8, 16, 40)
new_tokens = often(
    short_tokens, _pick(0, 0, 0, 0, 64, 200, -1, 10**6, 2**31, 2**63, None, "8", 3.7, True), 6
)


def _spread(*pairs: tuple[Any, int]) -> st.SearchStrategy:
    return st.sampled_from([value for value, times in pairs for _ in range(times)])


def prompt_lengths(limits: Limits) -> st.SearchStrategy:
    """Mostly short; else around the budget, the pool and the context."""
    budget, pool, context = limits.budget_tokens, limits.pool_tokens, limits.context_tokens
    return _spread(
        *((length, 4) for length in (1, 2, 8, 20, 37)),
        *((length, 3) for length in (budget - 1, budget, budget + 1, 2 * budget, 3 * budget + 5)),
        *((length, 1) for length in (pool - 1, pool, pool + 1, pool // 2, pool - budget)),
        *((length, 1) for length in (context - 3, context - 1, context, context + 1, 0)),
    )


@st.composite
def prompt_ids(draw, limits: Limits):
    """Token ids: a few shared prefixes, so that the radix cache matters."""
    length = draw(prompt_lengths(limits))
    start = draw(_pick(0, 0, 1, 2, 3))
    ids = [3 + (start * 7919 + i * (start + 1)) % (VOCABULARY - 3) for i in range(length)]
    if ids and _chance(draw, 4):
        ids[draw(st.integers(0, len(ids) - 1))] = draw(st.integers(3, VOCABULARY - 1))
    if ids and _chance(draw, 16):
        ids[draw(st.integers(0, len(ids) - 1))] = draw(wrong_token_ids)
    return ids


@st.composite
def prompt_texts(draw, limits: Limits):
    word = draw(_pick("apple ", "box ", "seven 7 ", "é"))
    return (word * max(1, draw(prompt_lengths(limits))))[:20_000]


@st.composite
def embeddings(draw):
    rows, width = draw(_pick(0, 1, 5, 60)), draw(_pick(HIDDEN, HIDDEN, HIDDEN, 8, 0))
    value = draw(_pick(0.0, 0.1, 0.1, -1.0, 1e30, float("nan"), "a", None))
    found: Any = [[value] * width for _ in range(rows)]
    if _chance(draw, 6) and rows > 1:
        found[-1] = found[-1][:-1]  # ragged
    return [found] if _chance(draw, 6) else found


rids = _pick("one", "two", "three", "", "a" * 300, "\ud800", 5, ["one"], ["one", "one"], [], None)
GENERATE: dict[str, st.SearchStrategy] = {
    "rid": rids,
    "return_logprob": st.booleans(),
    "logprob_start_len": _pick(-1, 0, 1, 5, 50, 100, 10**6, -5, 2**63, [0], [0, 1]),
    "top_logprobs_num": _pick(0, 1, 5, 5, 100, -1, VOCABULARY, VOCABULARY + 1, 10**9, [1], [1, 2]),
    "token_ids_logprob": st.one_of(
        st.lists(often(token_ids, wrong_token_ids, 6), max_size=3),
        _pick(None, [[1], [2]], [[]], "a", [None], {"a": 1}),
    ),
    "return_hidden_states": _pick(True, False, "last", "all", "prompt", 5, [True], []),
    "stream": st.booleans(),
    "session_params": st.one_of(
        st.fixed_dictionaries(
            {"id": _pick(*SESSIONS, *SESSIONS, "unknown", None, 5)},
            optional={
                "rid": _pick("one", "two", None, 5),
                "offset": _pick(0, 1, -1, 10**6, None, "a"),
                "replace": _pick(True, False, None),
                "drop_previous_output": _pick(True, False, None),
                "x": junk,
            },
        ),
        junk,
    ),
    "session_id": _pick(*SESSIONS, "", "unknown", 5),
    "lora_path": _pick(None, "a", "adapter", "", ["a"], [None], "../..", "/etc", 5),
    "priority": _pick(0, 1, -1, 2**31, 2**63, -(2**63), None, 1.5),
    "routed_dp_rank": _pick(0, 1, -1, 2**31, None),
    "data_parallel_rank": _pick(0, 1, -1, None),
    "bootstrap_host": _pick("127.0.0.1", "", None, ["a"]),
    "bootstrap_port": _pick(0, 8998, -1, None, [1]),
    "bootstrap_room": _pick(0, 1, -1, 2**63, None, [1]),
    "image_data": _pick("", "data:,", "file:///etc/hostname", ["a"], [["a"]], {"url": "a"}, 5),
    "custom_logit_processor": _pick("", "a", "{}", '{"callable": "00"}', ["a"], 5),
    "http_worker_ipc": _pick(None, "", "ipc:///tmp/nowhere-of-the-fuzzer", "tcp://x", "a"),
    "return_routed_experts": st.booleans(),
    "routed_experts_start_len": _pick(0, 1, -1, 10**6),
    "multi_item_delimiter_indices": _pick([0], [-1], [10**6], [[0]], [], None),
    "max_thinking_tokens": _pick(0, 1, 10, -1, None),
    "extra_key": _pick("a", "", ["a"], None),
    "received_time": _pick(0.0, -1.0, 1e30, float("nan"), None),
    "positional_embed_overrides": st.one_of(junk, st.just({"embeds": [[0.0]], "positions": [0]})),
    "num_items_assigned": _pick({"1": [1]}, {"image": [1]}, {}, None),
    "mm_data_mooncake": _pick([], ["a"], None),
}


def _params(fields: dict[str, st.SearchStrategy], tokens_key: str) -> st.SearchStrategy:
    """A sampling parameter's object: a length, mostly a budget, few of the rest."""
    others = sorted(set(fields) - {"custom_params"})

    @st.composite
    def draw_params(draw):
        found = {tokens_key: draw(new_tokens)}
        if draw(st.booleans()):
            found["custom_params"] = draw(often(custom_params, junk, 20))
        for name in draw(some_of(others)):
            found[name] = draw(often(fields[name], junk))
        if draw(st.booleans()):
            found["ignore_eos"] = True
        return found

    return draw_params()


def longest(body: Any) -> int | None:
    """The most tokens that a body asks for; None where it may be as many as fit."""
    found: list[int | None] = []

    def visit(value: Any) -> None:
        if isinstance(value, list):
            for one in value[:8]:
                visit(one)
        elif isinstance(value, dict):
            for key, one in value.items():
                if key in TOKEN_KEYS:
                    found.append(one if isinstance(one, int) and one <= SHORT_TOKENS else None)
                else:
                    visit(one)

    visit(body)
    return None if not found or None in found else max(one for one in found if one is not None)


TOKEN_KEYS = (
    "max_new_tokens",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "num_predict",
)
ANSWERING = (
    "/generate",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/api/chat",
    "/api/generate",
    "/invocations",
    "/vertex_generate",
)


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
        weights = _pick(limits.model, limits.model, "/nowhere", "", "..")
        return {
            **lengths,
            "input_ids": prompt_ids(limits),
            "input_embeds": embeddings(),
            "sampling_params": _params(SAMPLING, "max_new_tokens"),
            "model_path": weights,
            "model": _pick("m", limits.model, "", "m:adapter", None),
            "stream": st.booleans(),
            "logprobs": _pick(True, False, 0, 1, 5, 50, -1, None),
            "top_logprobs": _pick(0, 1, 5, 20, 21, -1, VOCABULARY + 1, None),
            "best_of": _pick(1, 2, 0, -1, None),
            "label_token_ids": st.lists(often(token_ids, wrong_token_ids, 5), max_size=3),
            "session_id": _pick(*SESSIONS),
            "capacity_of_str_len": _pick(0, 1, 100, 1000, -1, 2**63),
            "timeout": _pick(None, 0.0, 1.0, 30.0, -1.0, float("nan")),
            "lora_name": _pick("a", "b", "", "base"),
            "hicache_storage_backend": _pick("file", "", "none"),
        }

    def prompts(self) -> st.SearchStrategy:
        return st.one_of(prompt_ids(self.limits), prompt_texts(self.limits), texts)

    def extras(self, component: str, sizes=(0, 0, 0, 1, 1, 2)) -> st.SearchStrategy:
        """A few fields of a component, targeted where there are targeted values."""
        names = self.schemas.properties(component)

        @st.composite
        def draw_extras(draw):
            chosen = draw(some_of(names, sizes))
            return {name: draw(self.schemas.field(component, name)) for name in chosen}

        return draw_extras()

    def generate(self) -> st.SearchStrategy:
        @st.composite
        def body(draw):
            found: dict[str, Any] = {"sampling_params": draw(_params(SAMPLING, "max_new_tokens"))}
            kind = draw(_spread(("ids", 8), ("text", 5), ("batch", 2), ("embeds", 1), ("none", 1)))
            if kind == "ids":
                found["input_ids"] = draw(prompt_ids(self.limits))
            elif kind == "text":
                found["text"] = draw(st.one_of(prompt_texts(self.limits), texts))
            elif kind == "batch":
                count = draw(_pick(0, 1, 2, 3))
                found["input_ids"] = [draw(prompt_ids(self.limits)) for _ in range(count)]
                if draw(st.booleans()):
                    params = _params(SAMPLING, "max_new_tokens")
                    found["sampling_params"] = [
                        draw(params) for _ in range(draw(_pick(count, count, count, 1, 0)))
                    ]
            elif kind == "embeds":
                found["input_embeds"] = draw(embeddings())
            if _chance(draw, 4):
                found |= {"return_logprob": True}
                for name in ("logprob_start_len", "top_logprobs_num", "token_ids_logprob"):
                    if draw(st.booleans()):
                        found[name] = draw(GENERATE[name])
            if _chance(draw, 3):
                found["stream"] = True
            if _chance(draw, 2):
                for name in draw(some_of(sorted(GENERATE), (1, 1, 2))):
                    found[name] = draw(often(GENERATE[name], junk))
            else:
                found |= draw(self.extras("GenerateReqInput"))
            return found

        return body()

    def _openai(self, component: str, tokens_key: str, base) -> st.SearchStrategy:
        sampling = sorted(set(SAMPLING) - {"custom_params"})

        @st.composite
        def body(draw):
            found = {"model": "m", tokens_key: draw(new_tokens), **draw(base)}
            if draw(st.booleans()):
                found["custom_params"] = draw(custom_params)
            for name in draw(some_of(sampling, (0, 0, 1, 2))):
                found[name] = draw(SAMPLING[name])
            found |= draw(self.extras(component))
            if _chance(draw, 3):
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
                    _pick(
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
        role = _spread(("user", 8), ("assistant", 2), ("system", 2), ("tool", 1), ("x", 1), (5, 1))
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
            optional={"temperature": _floats, "top_k": SAMPLING["top_k"], "seed": junk},
        )
        return st.fixed_dictionaries(
            {"model": st.just("m"), key: value, "options": often(options, junk)},
            optional={"stream": st.booleans(), "format": _pick("json", {"type": "object"}, "x")},
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
                    {"sampling_params": _params(SAMPLING, "max_new_tokens")}
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
            elif _chance(draw, 15):
                hang_up_s = draw(_pick(0.001, 0.01, 0.05, 0.3))
            return Call("POST", path, content, hang_up_s=hang_up_s)

        return draw_call()

    def _control(self) -> list[tuple[int, st.SearchStrategy]]:
        """Calls that change what runs; each may fail, none may hurt others for good."""

        def post(path: str, body: st.SearchStrategy, **more: Any) -> st.SearchStrategy:
            return st.builds(lambda content: Call("POST", path, content, **more), body)

        pause = st.builds(
            lambda mode, s: Call("POST", "/pause_generation", {"mode": mode}, resume_s=s),
            _pick("retract", "retract", "in_place", "abort", "x", None),
            _pick(0.0, 0.05, 0.3, 1.0),
        )
        abort = st.one_of(
            st.builds(lambda rid: {"rid": rid}, _pick("one", "two", "unknown", "a" * 300, 5)),
            _pick({"abort_all": True}, {"rid": ""}, {}, {"abort_all": "x"}, {"rid": ["one"]}),
            st.fixed_dictionaries(
                {"rid": _pick("one", "two")},
                optional={"finished_reason": junk, "abort_message": junk},
            ),
        )
        reload = st.fixed_dictionaries(
            {"model_path": _pick(self.limits.model, self.limits.model, "/nowhere")},
            optional={
                "abort_all_requests": st.booleans(),
                "flush_cache": st.just(True),
                "load_format": _pick("auto", "safetensors", "x", None),
                "weight_version": texts,
                "keep_pause": st.just(False),
            },
        )
        session = st.fixed_dictionaries(
            {
                "session_id": _pick(*SESSIONS),
                "capacity_of_str_len": self.fields["capacity_of_str_len"],
            },
            optional={"streaming": st.booleans(), "timeout": self.fields["timeout"]},
        )
        state = st.one_of(
            st.builds(
                lambda key, value: {"server_args": {key: value}},
                _pick("pp_max_micro_batch_size", "max_running_requests", "kv_budget", "x"),
                _pick(-1, 0, 10**9, "a", None, 1.5, [], {}),
            ),
            junk,
        )
        flush = st.builds(
            lambda query: Call("POST", "/flush_cache" + query),
            _pick("", "", "?timeout=0.2", "?timeout=-1", "?timeout=nan", "?timeout=x"),
        )
        return [
            (4, pause),
            (2, st.just(Call("POST", "/continue_generation", {}))),
            (3, post("/abort_request", abort)),
            (2, flush),
            (1, post("/update_weights_from_disk", reload)),
            (1, post("/set_internal_state", state)),
            (3, post("/open_session", session)),
            (2, post("/close_session", st.builds(lambda s: {"session_id": s}, _pick(*SESSIONS)))),
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

        queries = _pick("", "", "?max_age_s=0", "?timeout=0", "?budget=64&users=0", "?include=all")
        return st.builds(make, body, queries if method == "GET" else st.just(""))

    def _raw(self) -> st.SearchStrategy:
        """No JSON, or JSON that is no object, at any route that takes a body."""
        paths = (*ANSWERING, "/v1/score", "/v1/rerank", "/v1/embeddings", "/classify", "/tokenize")
        raw = _pick(
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
        kinds = _spread(("application/json", 6), ("text/plain", 1), ("", 1), ("a/b; c=d", 1))
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


def is_destructive(call: Call) -> bool:
    """Whether a call is known to change the weights, by design."""
    payload = (call.payload() or b"").decode(errors="replace")
    return any(text in payload for text in DESTRUCTIVE)


def draw_calls(strategy: st.SearchStrategy, count: int, seed_number: int) -> list[Call]:
    """`count` requests, the same for the same seed; fewer where hypothesis ends before."""
    found: list[Call] = []

    @seed(seed_number)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw(call: Call) -> None:
        if not is_destructive(call) and len(found) < count:
            found.append(call)
        reject()  # hypothesis makes variants of what it may keep: most would be the same again

    with contextlib.suppress(Unsatisfiable):
        draw()
    return found


def call_stream(strategy: st.SearchStrategy, count: int, seed_number: int) -> Iterator[Call]:
    """`count` requests, drawn in parts as they are taken."""
    part, left = 0, count
    while left > 0:
        drawn = draw_calls(strategy, min(left, PART), seed_number * 1_000_003 + part)
        yield from drawn[:left]
        left -= max(1, len(drawn))
        part += 1


def values_of(strategy: st.SearchStrategy, count: int = 60) -> list[Any]:
    """Different values of a strategy, as JSON has them."""
    found: dict[str, Any] = {}

    @seed(1)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw(value: Any) -> None:
        found.setdefault(json.dumps(value), value)

    draw()
    return list(found.values())


def sweep(calls: Calls) -> Iterator[Call]:
    """Every targeted value of every field, one at a time in a request that is right, then odd ones.

    Then every route of the schema with odd bodies. In this order the last call before a death is
    its cause.
    """
    for odd in (False, True):
        yield from _sweep_generate(calls, odd)
        yield from _sweep_routes(calls, odd)


def _sweep_generate(calls: Calls, odd: bool) -> Iterator[Call]:
    def values(strategy: st.SearchStrategy) -> list[Any]:
        targeted = values_of(strategy)
        known = {json.dumps(value) for value in targeted}
        return [v for v in JUNK if json.dumps(v) not in known] if odd else targeted

    def generate(params: dict[str, Any] | None = None, **top: Any) -> Call:
        known = {"max_new_tokens": 3, "ignore_eos": True, **(params or {})}
        body = {"input_ids": [3, 4, 5, 6], "sampling_params": known, **top}
        return Call("POST", "/generate", body, hang_up_s=None if longest(body) else SWEEP_HANG_UP_S)

    for name, strategy in {"max_new_tokens": new_tokens, **SAMPLING}.items():
        for value in values(strategy):
            yield generate({name: value})
            if name in ("frequency_penalty", "presence_penalty", "repetition_penalty"):
                yield generate({name: value, "temperature": 0, "max_new_tokens": 8})
    names = sorted({*GENERATE, *calls.schemas.properties("GenerateReqInput")} - {"text"})
    for name in names:
        strategy = calls.fields.get(name)
        if strategy is None:
            strategy = calls.schemas.field("GenerateReqInput", name)
        for value in values(strategy):
            call = generate(**{name: value})
            if name == "input_embeds":
                call.body.pop("input_ids")
            yield call
            if "logprob" in name:
                yield generate(**{"return_logprob": True, name: value})
                yield generate(**{"return_logprob": True, "logprob_start_len": 0, name: value})


def _sweep_routes(calls: Calls, odd: bool) -> Iterator[Call]:
    for path, methods in sorted(calls.paths.items()):
        if path in EXCLUDED:
            continue
        for method, operation in sorted(methods.items()):
            schema = operation.get("requestBody", {}).get("content", {})
            schema = schema.get("application/json", {}).get("schema")
            bodies = [None] if schema is None else values_of(calls.schemas.values(schema), 12)
            for body in JUNK[::4] if odd and schema is not None else bodies:
                long = path in ANSWERING and longest(body) is None
                route = path.format(model="m", response_id="resp_none")
                yield Call(method.upper(), route, body, hang_up_s=SWEEP_HANG_UP_S if long else None)
