"""Requests known to end SGLang by themselves, with or without a budget: left out on request.

A name here is a debt, not an excuse: docs/fuzzing.md has each with its cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fuzz_bodies import VOCABULARY, Call, Limits


def fields(value: Any, name: str) -> Iterator[Any]:
    """Every value of a field, wherever it lies in a body."""
    if isinstance(value, dict):
        for key, one in value.items():
            if key == name:
                yield one
            yield from fields(one, name)
    elif isinstance(value, list) and not all(isinstance(one, int) for one in value):
        for one in value:
            yield from fields(one, name)


def _custom_params(call: Call, limits: Limits) -> bool:
    found = fields(call.body, "custom_params")
    return any(value is not None and not isinstance(value, dict) for value in found)


def _prefill_only(call: Call, limits: Limits) -> bool:
    if call.path in ("/v1/score", "/v1/rerank"):
        return True
    names = ("max_new_tokens", "max_tokens", "max_completion_tokens", "num_predict")
    if any(value == 0 for name in names for value in fields(call.body, name)):
        return True
    return any(value not in (None, 1) for value in fields(call.body, "n"))


def _outside(value: Any) -> bool:
    if isinstance(value, list):
        return any(_outside(one) for one in value)
    return isinstance(value, int) and not 0 <= value < VOCABULARY


def _token_ids(call: Call, limits: Limits) -> bool:
    names = ("input_ids", "prompt", "query", "items", "label_token_ids", "token_ids_logprob")
    return any(_outside(value) for name in names for value in fields(call.body, name))


KNOWN: dict[str, Callable[[Call, Limits], bool]] = {
    "custom_params that is no object": _custom_params,
    "prefill only": _prefill_only,
    "token id outside the vocabulary": _token_ids,
}


def is_known(call: Call, limits: Limits) -> str | None:
    """The name of a known fault that this call asks for, or None."""
    return next((name for name, asks in KNOWN.items() if asks(call, limits)), None)
