# SPDX-License-Identifier: Apache-2.0
"""Request: every field of a request has the type that SGLang declares, and a value it can compute.

SGLang declares types for what its HTTP process sends to its scheduler and checks few of them; a
float where an integer belongs, or a number that no tensor holds, ends the scheduler.
"""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from sglang_longflow.errors import BudgetError

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
#: The largest logit bias: the sum with a logit must stay finite in float32.
MAX_LOGIT_BIAS = 1e30
#: Logits are divided by it.
MIN_REPETITION_PENALTY = 1e-6
#: The largest number of an input embedding: float16 holds no more.
MAX_EMBEDDING = 65504.0
#: Prompts times samples of one HTTP request: when its client leaves, SGLang aborts one by one.
MAX_REQUESTS_PER_CALL = 4096
#: Sampling parameters that are compiled, by a library that ends the process at some texts.
GRAMMARS = ("regex", "ebnf", "json_schema", "structural_tag")
MAX_GRAMMAR_DEPTH = 128
MAX_GRAMMAR_CHARACTERS = 200_000
#: Answers to one prompt; each is a separate request to the scheduler.
MAX_SAMPLES = 1024

_SCALARS: dict[Any, tuple[type, ...]] = {
    int: (int,),
    float: (int, float),
    bool: (bool,),  # a number ends SGLang's detokenizer
    str: (str,),
}
_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}


def wrong_value(value: Any, hint: Any) -> str:
    """What `value` should be instead, by the type annotation `hint`; empty if it fits.

    Numbers must be finite and fit into 64 bits. Types of SGLang's own are not looked at.
    """
    if hint in _SCALARS:
        if not isinstance(value, _SCALARS[hint]) or (isinstance(value, bool) and hint is not bool):
            return _NAMES[hint]
        if isinstance(value, float) and not math.isfinite(value):
            return "a finite number"
        if isinstance(value, int) and abs(value) > INT64_MAX:
            return "a number of 64 bits"
        return ""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        problems = [problem for one in arguments if (problem := wrong_value(value, one))]
        return "" if len(problems) < len(arguments) else " or ".join(dict.fromkeys(problems))
    if hint is type(None):
        return "" if value is None else "null"
    if origin in (list, set, frozenset, tuple):
        if not isinstance(value, list | set | frozenset | tuple):
            return "a list"
        items = (wrong_value(item, arguments[0]) for item in value)
        return next((f"a list of {problem}" for problem in items if problem), "")
    if origin is typing.Literal:
        return "" if value in arguments else " or ".join(map(repr, arguments))
    if origin is dict:
        if not isinstance(value, Mapping):
            return "an object"
        items = (wrong_value(item, arguments[1]) for item in value.values())
        return next((f"an object of {problem}" for problem in items if problem), "")
    return ""


def check_fields(values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Refuse the first of `values` that does not fit its annotation.

    Raises
    ------
    BudgetError
    """
    for name, value in values.items():
        if problem := wrong_value(value, hints.get(name)):
            raise BudgetError(f"{name}={value!r:.60}: expected {problem}", "wrong_type")


def check_sampling_bounds(sampling: Mapping[str, Any]) -> None:
    """Refuse sampling parameters that leave no finite logits, or that no tensor of them holds.

    Parameters
    ----------
    sampling : mapping
        Fields of SGLang's ``SamplingParams``, of the right types, after its own ``verify``.

    Raises
    ------
    BudgetError
    """
    bounds = {
        "top_k": (-1, INT32_MAX),
        "max_new_tokens": (0, INT32_MAX),
        "min_new_tokens": (0, INT32_MAX),
        "stream_interval": (1, INT32_MAX),
        "repetition_penalty": (MIN_REPETITION_PENALTY, 2.0),
    }
    for name, (low, high) in bounds.items():
        _check_range(name, sampling.get(name), low, high)
    width = sampling.get("beam_width")
    if width is not None and width > 1:
        raise BudgetError(
            f"beam_width={width}: beams share their KV, which a server with a KV budget "
            f"overwrites; send no beam_width, and n for several answers",
            "beam",
        )
    for name in GRAMMARS:
        _check_grammar(name, sampling.get(name))
    for token, bias in (sampling.get("logit_bias") or {}).items():
        _check_range(f"logit_bias[{token}]", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)


def check_request_bounds(request: Mapping[str, Any], vocab_size: int) -> None:
    """The same for what else a request says, by the field names of ``TokenizedGenerateReqInput``.

    Raises
    ------
    BudgetError
    """
    _check_range("top_logprobs_num", request.get("top_logprobs_num"), 0, vocab_size)
    _check_range("logprob_start_len", request.get("logprob_start_len"), -1, INT32_MAX)


def check_positions(positions: list[int] | None, prompt_tokens: int) -> None:
    """Refuse ``token_indices_to_pool`` that is empty or beyond the prompt.

    SGLang's scheduler indexes the prompt's hidden states with it, and would end.

    Raises
    ------
    BudgetError
    """
    if positions is None:
        return
    if not positions:
        raise BudgetError(
            "token_indices_to_pool=[]: expected positions of the prompt; leave it out for none",
            "wrong_type",
        )
    for position in positions:
        _check_range("token_indices_to_pool", position, 0, prompt_tokens - 1)


def check_embeddings(input_embeds: Any, hidden_size: int) -> None:
    """Refuse a prompt of embeddings that the model cannot take.

    Parameters
    ----------
    input_embeds : list of list of float, or None
        [tokens, hidden_size].
    hidden_size : int

    Raises
    ------
    BudgetError
        Another shape; no numbers; a number that is not finite, or over `MAX_EMBEDDING`.
    """
    if input_embeds is None:
        return
    try:
        found = np.asarray(input_embeds)
    except (ValueError, TypeError, OverflowError):  # rows of several lengths
        found = np.empty(0, dtype=object)
    if found.ndim != 2 or found.shape[1] != hidden_size or found.dtype.kind not in "fiu":
        raise BudgetError(
            f"input_embeds: expected rows of {hidden_size} numbers, one row a token", "wrong_type"
        )
    if found.size == 0 or not np.all(np.abs(found) <= MAX_EMBEDDING):
        raise BudgetError(
            f"input_embeds: expected at least one row, of finite numbers up to {MAX_EMBEDDING:g}",
            "out_of_range",
        )


def check_known(names: Iterable[str], known: Collection[str]) -> None:
    """Refuse a sampling parameter that SGLang does not have.

    Raises
    ------
    BudgetError
    """
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise BudgetError(f"sampling_params: {name!r:.60} is unknown{hint}", "unknown_key")


def _check_grammar(name: str, text: str | None) -> None:
    if text is None:
        return
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
        elif "\ud800" <= character <= "\udfff" or (character < " " and character not in "\t\n\r"):
            raise BudgetError(
                f"{name}: has the character {character!r}, which no grammar may have",
                "out_of_range",
            )
    if deepest > MAX_GRAMMAR_DEPTH or len(text) > MAX_GRAMMAR_CHARACTERS:
        raise BudgetError(
            f"{name}: {len(text):,} characters, {deepest} brackets deep; expected at most "
            f"{MAX_GRAMMAR_CHARACTERS:,} and {MAX_GRAMMAR_DEPTH}",
            "out_of_range",
        )


def check_samples(n: Any) -> None:
    """Refuse an `n` of over `MAX_SAMPLES` answers, or of none, before SGLang makes requests of it.

    Raises
    ------
    BudgetError
    """
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_SAMPLES:
        raise BudgetError(
            f"n={n!r:.40}: expected an integer from 1 to {MAX_SAMPLES}", "out_of_range"
        )


def check_call(prompts: int, samples: int) -> None:
    """Refuse an HTTP request that would become too many requests of the scheduler.

    Raises
    ------
    BudgetError
    """
    if prompts * samples > MAX_REQUESTS_PER_CALL:
        raise BudgetError(
            f"{prompts:,} prompts with n={samples}: expected at most {MAX_REQUESTS_PER_CALL:,} "
            f"answers of one HTTP request; send several",
            "out_of_range",
        )


def _check_range(name: str, value: Any, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise BudgetError(f"{name}={value!r:.40}: expected {low:g} to {high:,g}", "out_of_range")
