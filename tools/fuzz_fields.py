# SPDX-License-Identifier: Apache-2.0
"""Values that matter to a scheduler, by field.

Prompts lie around the budget, the pool and the context of the server that is asked (`Limits`).
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from fuzz_call import SESSIONS, Limits
from fuzz_schema import chance, junk, often, pick, some_of, spread, texts

VOCABULARY = 49152
HIDDEN = 256

KV_PARAMS = {
    "kv_budget": often(
        pick(48, 48, 64, 96, 0, 38, 200), pick(-1, 5, 37, 10**9, 2**70, "48", 48.0, True, None)
    ),
    "kv_policy": often(
        pick("longflow", "tova", "streaming", "random", "longflow-novel", "longflow-peak"),
        pick("", "LongFlow", "oracle", "h2o", "rkv", None, 7, ["tova"], {"name": "tova"}),
    ),
    "kv_buget": junk,
    "__req__": junk,
    "other": junk,
}


@st.composite
def _kv_object(draw):
    names = draw(st.lists(pick("kv_budget", "kv_budget", "kv_policy"), max_size=2, unique=True))
    if chance(draw, 8):
        names += [draw(pick("kv_buget", "__req__", "other"))]
    return {name: draw(KV_PARAMS[name]) for name in names}


custom_params = st.one_of(
    _kv_object(),
    _kv_object(),
    _kv_object(),
    st.one_of(
        st.none(),
        texts,
        pick(5, 0, 1.5, True, float("nan"), [], [[]], [None], {"kv_budget": {"a": [48]}}),
        st.lists(_kv_object(), min_size=1, max_size=2),
        st.dictionaries(pick("kv_budget", "kv_policy", "kv_x", "a"), junk, max_size=2),
    ),
)
token_ids = pick(3, 5, 100, 49151, 49151, 2, 0, 1)
wrong_token_ids = pick(-1, -(2**31), VOCABULARY, 10**6, 2**31, 2**63 - 1, 2**63, 2**64, 1.5, True)
grammars = {
    "regex": pick(
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
    "json_schema": pick(
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
    "ebnf": pick(
        'root ::= "yes" | "no"',
        "root ::= [0-9]+",
        "root ::=",
        "x ::= y",
        'root ::= root "a"',
        'root ::= "a" root',
        "nonsense",
        "",
    ),
    "structural_tag": pick(
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
bad_regex = pick("a+", "(yes|no)", ".", "", "[", "(a", "*", "a{1,5}", "a{99999}", "(?P<x>a)(?P=x)")
#: A finite float, on the border of what is allowed, or beyond it.
floats = pick(0, 0.0, 1, 1.0, 0.5, 0.9, 1e-9, 2, -2, 2.5, -1, 1e30, float("nan"), float("inf"))

#: Fields of SGLang's `SamplingParams`.
SAMPLING: dict[str, st.SearchStrategy] = {
    "min_new_tokens": pick(0, 1, 2, 4, 8, 50, 3000, -1, 2**40),
    "n": pick(1, 2, 2, 3, 5, 0, -1, None, 1.5),
    "temperature": floats,
    "top_p": floats,
    "top_k": pick(1, -1, 5, 0, VOCABULARY, 10**9, 2**31, 2**63, -2, 1.5),
    "min_p": floats,
    "frequency_penalty": floats,
    "presence_penalty": floats,
    "repetition_penalty": floats,
    "stop": pick("a", ["a", "b"], "", [""], [], "\ud800", "x" * 2000, ["a"] * 40, [5], 5, [None]),
    "stop_token_ids": st.one_of(st.lists(st.one_of(token_ids, wrong_token_ids), max_size=3), junk),
    "stop_regex": st.one_of(bad_regex, st.lists(bad_regex, max_size=2)),
    **grammars,
    "ebnf_full_assistant": st.booleans(),
    "beam_width": pick(None, 1, 2, 0, -1, 2**40, 1.5, "a"),
    "watermark": st.one_of(
        st.fixed_dictionaries(
            {},
            optional={
                "enabled": pick(True, True, False, None, "a"),
                "key": pick("a", "", "\ud800", "x" * 300, 5),
                "context_window": pick(1, 4, 0, -1, 2**40, 1.5),
                "unknown_field": junk,
            },
        ),
        junk,
    ),
    "ignore_eos": st.booleans(),
    "skip_special_tokens": st.booleans(),
    "spaces_between_special_tokens": st.booleans(),
    "no_stop_trim": st.booleans(),
    "stream_interval": pick(1, 3, 100, 0, -1, -5, 2**40, 1.5),
    "logit_bias": st.one_of(
        st.dictionaries(
            pick("5", "100", "49151", "-1", "49152", "1e3", "a", ""),
            pick(0, 1.0, -100, 100, 1e30, float("nan"), float("inf"), None, "a"),
            max_size=2,
        ),
        junk,
    ),
    "sampling_seed": pick(0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64, 1.5, "a"),
    "custom_params": custom_params,
    "stop_strs": pick("a", ["a"], [5], {}),
    "stop_regex_strs": pick("a", ["["], [5]),
    "stop_str_max_len": pick(0, -1, 2**40),
    "stop_regex_max_len": pick(0, -1, 2**40),
    "is_normalized": st.booleans(),
    "unknown_field": junk,
}
short_tokens = pick(1, 1, 2, 3, 4, 4, 8, 8, 16, 40)
new_tokens = often(
    short_tokens, pick(0, 0, 0, 0, 64, 200, -1, 10**6, 2**31, 2**63, None, "8", 3.7, True), 6
)


def prompt_lengths(limits: Limits) -> st.SearchStrategy:
    """Mostly short; else around the budget, the pool and the context."""
    budget, pool, context = limits.budget_tokens, limits.pool_tokens, limits.context_tokens
    return spread(
        *((length, 4) for length in (1, 2, 8, 20, 37)),
        *((length, 3) for length in (budget - 1, budget, budget + 1, 2 * budget, 3 * budget + 5)),
        *((length, 1) for length in (pool - 1, pool, pool + 1, pool // 2, pool - budget)),
        *((length, 1) for length in (context - 3, context - 1, context, context + 1, 0)),
    )


@st.composite
def prompt_ids(draw, limits: Limits):
    """Token ids: a few shared prefixes, so that the radix cache matters."""
    length = draw(prompt_lengths(limits))
    start = draw(pick(0, 0, 1, 2, 3))
    ids = [3 + (start * 7919 + i * (start + 1)) % (VOCABULARY - 3) for i in range(length)]
    if ids and chance(draw, 4):
        ids[draw(st.integers(0, len(ids) - 1))] = draw(st.integers(3, VOCABULARY - 1))
    if ids and chance(draw, 16):
        ids[draw(st.integers(0, len(ids) - 1))] = draw(wrong_token_ids)
    return ids


@st.composite
def prompt_texts(draw, limits: Limits):
    word = draw(pick("apple ", "box ", "seven 7 ", "é"))
    return (word * max(1, draw(prompt_lengths(limits))))[:20_000]


@st.composite
def embeddings(draw):
    rows, width = draw(pick(0, 1, 5, 60)), draw(pick(HIDDEN, HIDDEN, HIDDEN, 8, 0))
    value = draw(pick(0.0, 0.1, 0.1, -1.0, 1e30, float("nan"), "a", None))
    found: Any = [[value] * width for _ in range(rows)]
    if chance(draw, 6) and rows > 1:
        found[-1] = found[-1][:-1]  # ragged
    return [found] if chance(draw, 6) else found


rids = pick("one", "two", "three", "", "a" * 300, "\ud800", 5, ["one"], ["one", "one"], [], None)
GENERATE: dict[str, st.SearchStrategy] = {
    "rid": rids,
    "return_logprob": st.booleans(),
    "logprob_start_len": pick(-1, 0, 1, 5, 50, 100, 10**6, -5, 2**63, [0], [0, 1]),
    "top_logprobs_num": pick(0, 1, 5, 5, 100, -1, VOCABULARY, VOCABULARY + 1, 10**9, [1], [1, 2]),
    "token_ids_logprob": st.one_of(
        st.lists(often(token_ids, wrong_token_ids, 6), max_size=3),
        pick(None, [[1], [2]], [[]], "a", [None], {"a": 1}),
    ),
    "return_hidden_states": pick(True, False, "last", "all", "prompt", 5, [True], []),
    "stream": st.booleans(),
    "session_params": st.one_of(
        st.fixed_dictionaries(
            {"id": pick(*SESSIONS, *SESSIONS, "unknown", None, 5)},
            optional={
                "rid": pick("one", "two", None, 5),
                "offset": pick(0, 1, -1, 10**6, None, "a"),
                "replace": pick(True, False, None),
                "drop_previous_output": pick(True, False, None),
                "x": junk,
            },
        ),
        junk,
    ),
    "session_id": pick(*SESSIONS, "", "unknown", 5),
    "lora_path": pick(None, "a", "adapter", "", ["a"], [None], "../..", "/etc", 5),
    "priority": pick(0, 1, -1, 2**31, 2**63, -(2**63), None, 1.5),
    "routed_dp_rank": pick(0, 1, -1, 2**31, None),
    "data_parallel_rank": pick(0, 1, -1, None),
    "bootstrap_host": pick("127.0.0.1", "", None, ["a"]),
    "bootstrap_port": pick(0, 8998, -1, None, [1]),
    "bootstrap_room": pick(0, 1, -1, 2**63, None, [1]),
    "image_data": pick("", "data:,", "file:///etc/hostname", ["a"], [["a"]], {"url": "a"}, 5),
    "custom_logit_processor": pick("", "a", "{}", '{"callable": "00"}', ["a"], 5),
    "http_worker_ipc": pick(None, "", "ipc:///tmp/nowhere-of-the-fuzzer", "tcp://x", "a"),
    "return_routed_experts": st.booleans(),
    "routed_experts_start_len": pick(0, 1, -1, 10**6),
    "multi_item_delimiter_indices": pick([0], [-1], [10**6], [[0]], [], None),
    "max_thinking_tokens": pick(0, 1, 10, -1, None),
    "extra_key": pick("a", "", ["a"], None),
    "received_time": pick(0.0, -1.0, 1e30, float("nan"), None),
    "positional_embed_overrides": st.one_of(junk, st.just({"embeds": [[0.0]], "positions": [0]})),
    "num_items_assigned": pick({"1": [1]}, {"image": [1]}, {}, None),
    "mm_data_mooncake": pick([], ["a"], None),
}


def sampling_objects(fields: dict[str, st.SearchStrategy], tokens_key: str) -> st.SearchStrategy:
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
