# SPDX-License-Identifier: Apache-2.0
"""Draws requests from the strategies of `fuzz_bodies`: at random, or every value alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from fuzz_bodies import Calls
from fuzz_call import ANSWERING, EXCLUDED, SWEEP_HANG_UP_S, Call, is_destructive, longest
from fuzz_fields import GENERATE, SAMPLING, new_tokens
from fuzz_schema import JUNK

#: Requests drawn from one seed; hypothesis gives up some time after.
PART = 100


class _Enough(BaseException):
    """Ends hypothesis at once: what is no `Exception` it takes for no finding."""


def _settings(count: int) -> settings:
    """Values are drawn only: none is kept for another run, none is made smaller."""
    return settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def draw_calls(strategy: st.SearchStrategy, count: int, seed_number: int) -> list[Call]:
    """`count` requests, the same for the same seed; fewer where hypothesis ends before."""
    found: list[Call] = []

    @seed(seed_number)
    @_settings(count)
    @given(strategy)
    def draw(call: Call) -> None:
        if not is_destructive(call):
            found.append(call)
        if len(found) == count:
            raise _Enough
        reject()  # hypothesis makes variants of what it may keep: most would be the same again

    with contextlib.suppress(Unsatisfiable, _Enough):
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
    @_settings(count)
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
            bodies: Sequence[Any] = [None]
            if schema is not None:
                bodies = JUNK[::4] if odd else values_of(calls.schemas.values(schema), 12)
            for body in bodies:
                long = path in ANSWERING and longest(body) is None
                route = path.format(model="m", response_id="resp_none")
                yield Call(
                    method.upper(),
                    route,
                    body,
                    hang_up_s=SWEEP_HANG_UP_S if long else None,
                    # Else the neighbours wait as they should, and the judge takes it for a hang.
                    resume_s=0.0 if path == "/pause_generation" else None,
                )
