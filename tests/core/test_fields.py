# SPDX-License-Identifier: Apache-2.0
"""Types and bounds of a request's fields."""

import math
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_longflow.core.fields import (
    MAX_SAMPLES,
    check_embeddings,
    check_fields,
    check_known,
    check_positions,
    check_request_bounds,
    check_samples,
    check_sampling_bounds,
    wrong_value,
)
from sglang_longflow.errors import BudgetError

NAN, INF = math.nan, math.inf


class Opaque:
    pass


FITS = [
    (3, int),
    (-(2**63) + 1, int),
    (3, float),
    (0.5, float),
    (True, bool),
    ("x", str),
    (None, int | None),
    (3, int | None),
    (["a"], str | list[str] | None),
    ([3, 4], set[int]),
    ({"1": -0.5}, dict[str, float]),
    (object(), Opaque),
    ({"anything": object()}, typing.Any),
]
WRONG = [
    (3.7, int, "an integer"),
    ("3", int, "an integer"),
    (None, int, "an integer"),
    (2**63, int, "a number of 64 bits"),
    (10**400, float, "a number of 64 bits"),
    (NAN, float, "a finite number"),
    (-INF, float, "a finite number"),
    ("0.5", float, "a number"),
    ("yes", bool, "true or false"),
    (0, bool, "true or false"),
    (True, int, "an integer"),
    (True, float, "a number"),
    (3, str, "a text"),
    (3.5, int | None, "an integer or null"),
    ("ab", list[str], "a list"),
    ([3, "x"], set[int], "a list of an integer"),
    ([[1.0], [NAN]], list[list[float]], "a list of a list of a finite number"),
    ([1], dict[str, float], "an object"),
    ({"5": INF}, dict[str, float] | None, "an object of a finite number or null"),
]


@pytest.mark.parametrize(("value", "hint"), FITS)
def test_values_that_fit(value, hint):
    assert wrong_value(value, hint) == ""


@pytest.mark.parametrize(("value", "hint", "expected"), WRONG)
def test_values_that_do_not(value, hint, expected):
    assert wrong_value(value, hint) == expected


def test_a_refusal_names_field_and_value():
    with pytest.raises(BudgetError, match=r"top_k='many': expected an integer") as caught:
        check_fields({"min_p": 0.5, "top_k": "many"}, {"min_p": float, "top_k": int})
    assert caught.value.reason == "wrong_type"


@pytest.mark.sglang
def test_hints_of_sglang_are_ones_that_are_looked_at():
    """Its own parameters, as SGLang makes them, fit; and those that ended a scheduler do not."""
    from sglang.srt.sampling.sampling_params import SamplingParams

    hints = typing.get_type_hints(SamplingParams)
    given = SamplingParams(
        stop=["x"], stop_token_ids=[3], logit_bias={"3": 1}, temperature=1, regex="a+"
    )
    fields = {name: getattr(given, name) for name in given.__struct_fields__}
    check_fields(fields, hints)
    for name, value in (
        ("max_new_tokens", 3.7),
        ("top_k", 2**63),
        ("temperature", NAN),
        ("logit_bias", {"3": NAN}),
        ("stop_token_ids", ["x"]),
        ("regex", 5),
        ("ignore_eos", "no"),
    ):
        with pytest.raises(BudgetError, match=name):
            check_fields({name: value}, hints)


@pytest.mark.parametrize(
    "sampling",
    [
        {"top_k": 2**31},
        {"min_new_tokens": 2**31},
        {"max_new_tokens": -1},
        {"stream_interval": 0},
        {"repetition_penalty": 1e-30},
        {"logit_bias": {"3": 1e38}},
        {"regex": "a\x00b"},
        {"ebnf": "root ::= \ud800"},
        {"json_schema": "[" * 129},
        {"structural_tag": "x" * 200_001},
    ],
)
def test_bounds_of_sampling(sampling):
    with pytest.raises(BudgetError, match=next(iter(sampling))):
        check_sampling_bounds(sampling)


def test_usual_sampling_passes():
    check_sampling_bounds(
        {
            "top_k": 1 << 30,
            "max_new_tokens": None,
            "min_new_tokens": 5,
            "repetition_penalty": 1.2,
            "logit_bias": {"3": -1e9},
            "json_schema": '{"type": "object",\n\t"properties": {"é😀": {"type": "string"}}}',
        }
    )


def test_beams_are_refused_and_one_is_none():
    with pytest.raises(BudgetError, match=r"^beam_width=2: beams share their KV"):
        check_sampling_bounds({"beam_width": 2})
    for width in (None, 1):
        check_sampling_bounds({"beam_width": width})


@pytest.mark.parametrize("positions", [[], [5], [0, -1], [4, 1 << 40]])
def test_positions_that_the_prompt_does_not_have(positions):
    with pytest.raises(BudgetError, match=r"^token_indices_to_pool="):
        check_positions(positions, 5)


def test_positions_of_the_prompt_pass():
    for positions in (None, [0], [4, 2]):
        check_positions(positions, 5)


def test_one_of_several_texts():
    hint = typing.Literal["selected", "support"]
    assert wrong_value("support", hint) == ""
    for value in ("other", 1, None):
        assert wrong_value(value, hint) == "'selected' or 'support'"


def test_bounds_of_a_request():
    check_request_bounds({"top_logprobs_num": 512, "logprob_start_len": -1}, 512)
    for request in ({"top_logprobs_num": 513}, {"top_logprobs_num": -1}, {"logprob_start_len": -2}):
        with pytest.raises(BudgetError, match=next(iter(request))):
            check_request_bounds(request, 512)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [[]],
        [[1.0, 2.0]],
        [[1.0, 2.0, 3.0], [1.0]],
        [[1.0, 2.0, "3"]],
        [[1.0, 2.0, NAN]],
        [[1.0, 2.0, 1e38]],
        "text",
        7,
        {"a": 1},
        [[[1.0, 2.0, 3.0]]],
    ],
)
def test_embeddings_that_no_model_takes(rows):
    with pytest.raises(BudgetError, match="input_embeds: expected"):
        check_embeddings(rows, 3)


def test_embeddings_that_one_takes():
    check_embeddings(None, 3)
    check_embeddings([[1, 2.5, -3e4]] * 4, 3)


def test_unknown_parameters_are_named():
    with pytest.raises(BudgetError, match=r"'max_tokens' is unknown; did you mean max_new_tokens"):
        check_known(["max_tokens"], {"max_new_tokens", "top_k"})
    check_known(["top_k"], {"max_new_tokens", "top_k"})


def test_too_many_samples():
    check_samples(MAX_SAMPLES)
    check_samples(1)
    for n in (MAX_SAMPLES + 1, 0, -1, None, 1.5, "x", True):
        with pytest.raises(BudgetError, match=f"an integer from 1 to {MAX_SAMPLES}"):
            check_samples(n)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
)


@given(json_values)
def test_whatever_is_sent_is_judged_and_nothing_raises(value):
    for _, hint in FITS:
        assert isinstance(wrong_value(value, hint), str)
    for hint in (int, float, str, set[int], dict[str, float]):
        try:
            check_fields({"field": value}, {"field": hint})
        except BudgetError as error:
            assert "field=" in str(error)
    try:
        check_embeddings(value, 3)
    except BudgetError:
        pass
