# SPDX-License-Identifier: Apache-2.0
"""What is drawn: the same for the same seed, every field and route of SGLang, and odd values."""

from __future__ import annotations

import json
from collections import Counter

import msgspec
import pytest

import fuzz_call
import fuzz_fields
from fuzz_bodies import Calls
from fuzz_call import Call, Limits, longest
from fuzz_draw import call_stream, sweep
from fuzz_known import KNOWN, is_known

LIMITS = Limits(budget_tokens=96, pool_tokens=2048, context_tokens=4096, model="/model")


@pytest.fixture(scope="module")
def calls(document) -> Calls:
    return Calls(document, LIMITS)


@pytest.fixture(scope="module")
def drawn(calls) -> list[Call]:
    return list(call_stream(calls.strategy(), 1500, seed_number=3))


@pytest.mark.sglang
def test_the_same_seed_makes_the_same_requests(calls, drawn):
    again = list(call_stream(calls.strategy(), 1500, seed_number=3))
    assert [json.dumps(c.to_json()) for c in again] == [json.dumps(c.to_json()) for c in drawn]
    other = list(call_stream(calls.strategy(), 1500, seed_number=4))
    assert [c.payload() for c in other] != [c.payload() for c in drawn]
    assert len({(c.path, c.payload()) for c in drawn}) > 1000


@pytest.mark.sglang
def test_every_sampling_parameter_of_sglang_has_values():
    from sglang.srt.sampling.sampling_params import SamplingParams

    known = {field.name for field in msgspec.structs.fields(SamplingParams)}
    assert known - set(fuzz_fields.SAMPLING) == {"max_new_tokens"}
    assert set(fuzz_fields.SAMPLING) - known == {"unknown_field"}


@pytest.mark.sglang
def test_excluded_routes_exist_and_are_never_asked(document, drawn):
    assert set(fuzz_call.EXCLUDED) <= set(document["paths"])
    asked = {call.path.split("?")[0] for call in drawn}
    assert not asked & set(fuzz_call.EXCLUDED)
    assert {*fuzz_call.ANSWERING, "/v1/score", "/pause_generation", "/open_session"} <= asked


@pytest.mark.sglang
def test_lengths_lie_around_the_limits(drawn):
    lengths = Counter(
        len(ids)
        for call in drawn
        if isinstance(call.body, dict) and isinstance(ids := call.body.get("input_ids"), list)
    )
    for tokens in (0, 1, 95, 96, 97):
        assert lengths[tokens] >= 3, tokens
    assert any(2047 <= tokens <= 2049 for tokens in lengths) and max(lengths) >= 4096


@pytest.mark.sglang
def test_a_call_survives_its_replay_file(drawn):
    for call in drawn:
        again = Call.from_json(json.loads(json.dumps(call.to_json())))
        assert again.payload() == call.payload()
        assert (again.method, again.path, again.hang_up_s) == (
            call.method,
            call.path,
            call.hang_up_s,
        )


@pytest.mark.sglang
def test_answers_that_may_be_long_are_hung_up_on(drawn):
    assert longest({"sampling_params": {"max_new_tokens": 8}}) == 8
    assert longest({"sampling_params": [{"max_new_tokens": 8}, {"max_new_tokens": 65}]}) is None
    assert longest({"max_tokens": None}) is None and longest({}) is None
    for call in drawn:
        if call.path in fuzz_call.ANSWERING and not isinstance(call.body, bytes):
            assert call.hang_up_s or longest(call.body) is not None


@pytest.mark.sglang
def test_the_sweep_has_every_sampling_parameter(calls):
    seen: Counter = Counter()
    pauses = 0
    for call in sweep(calls):
        assert call.path not in fuzz_call.EXCLUDED
        paused = call.path == "/pause_generation"
        assert (call.resume_s is not None) == paused, "who pauses goes on, so that neighbours do"
        pauses += paused
        if call.path == "/generate" and isinstance(call.body, dict):
            params = call.body.get("sampling_params")
            seen.update(list(params) if isinstance(params, dict) else ())
    assert pauses > 10
    assert all(seen[name] > 20 for name in fuzz_fields.SAMPLING)


def test_what_is_known_is_rare():
    """A fault that is left out must not hide most of the requests."""
    plain = Call("POST", "/generate", {"text": "a", "sampling_params": {"max_new_tokens": 4}})
    assert is_known(plain, LIMITS) is None
    assert all(callable(asks) for asks in KNOWN.values())
