# SPDX-License-Identifier: Apache-2.0
"""What a request asks for becomes a budget, or a refusal that names field, value and limit."""

import re
from array import array

import pytest

from sglang_longflow.core.admission import peak_slots, prefill_slots
from sglang_longflow.core.contracts import KVBudget
from sglang_longflow.core.request import (
    asks_for_budget,
    check_fits,
    check_input_ids,
    resolve_budget,
    stop_ids_in_vocabulary,
)
from sglang_longflow.errors import BudgetError, LongFlowError
from sglang_longflow.settings.config import LongFlowConfig

BOUNDED = LongFlowConfig(kv_budget=100, kv_budget_min=50, kv_budget_max=200)
FULL_TOO = LongFlowConfig(kv_budget=100, kv_budget_allow_full=True)
PUBLISHED = LongFlowConfig(kv_budget=100, kv_policy="longflow", kv_budget_allow_full=True)
FULL_DEFAULT = LongFlowConfig(kv_budget=0)
PROTECTED = LongFlowConfig(
    kv_budget=100, kv_policy="streaming", kv_protect_sink_tokens=4, kv_protect_recent_tokens=10
)


def refusal(params, config):
    with pytest.raises(BudgetError) as caught:
        resolve_budget(params, config)
    assert isinstance(caught.value, LongFlowError)
    assert isinstance(caught.value, ValueError)  # SGLang answers a ValueError with HTTP 400
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("params", [None, {}, {"mine": 1, "__req__": object()}])
def test_a_request_that_asks_for_nothing_gets_the_defaults(params):
    got = resolve_budget(params, BOUNDED)
    assert (got.tokens, got.policy.name) == (100, "longflow-novel")
    assert resolve_budget(params, FULL_DEFAULT).is_full


@pytest.mark.parametrize("tokens", [50, 51, 100, 199, 200])
def test_bounds_are_inclusive(tokens):
    assert resolve_budget({"kv_budget": tokens}, BOUNDED).tokens == tokens


@pytest.mark.parametrize(
    ("value", "config", "reason", "limit"),
    [
        (49, BOUNDED, "below_minimum", "50"),
        (38, BOUNDED, "below_minimum", "50"),
        (201, BOUNDED, "above_maximum", "200"),
        (10**18, BOUNDED, "above_maximum", "200"),
        (33, PUBLISHED, "below_policy_minimum", "34"),
        (37, FULL_TOO, "below_policy_minimum", "38"),
        (1, FULL_TOO, "below_policy_minimum", "38"),
        (15, PROTECTED, "below_policy_minimum", "16"),
        (-1, FULL_TOO, "negative", "0 for full KV"),
        (-(10**9), BOUNDED, "negative", "0 for full KV"),
        (0, BOUNDED, "full_not_allowed", "--kv-budget-allow-full"),
        (True, FULL_TOO, "not_int", "integer"),
        (False, FULL_TOO, "not_int", "integer"),
        (100.0, BOUNDED, "not_int", "integer"),
        (float("nan"), BOUNDED, "not_int", "integer"),
        ("100", BOUNDED, "not_int", "integer"),
        ("", BOUNDED, "not_int", "integer"),
        (None, BOUNDED, "not_int", "integer"),
        ([100], BOUNDED, "not_int", "integer"),
        ({"tokens": 100}, BOUNDED, "not_int", "integer"),
    ],
)
def test_refused_budget_names_field_value_and_limit(value, config, reason, limit):
    error = refusal({"kv_budget": value}, config)
    assert error.reason == reason
    assert str(error).startswith(f"kv_budget={value!r}: ")
    assert re.search(rf"(?<!\d){re.escape(limit)}(?!\d)", str(error))


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("kv_bugdet", "did you mean kv_budget?"),
        ("kv_polcy", "did you mean kv_policy?"),
        ("kv_x", "known: kv_budget, kv_policy"),
    ],
)
def test_a_misspelt_key_is_refused(key, hint):
    error = refusal({key: 100, "mine": 1}, BOUNDED)
    assert error.reason == "unknown_key" and len(refusal({key: "x" * 999}, BOUNDED).args[0]) < 200
    assert str(error).startswith(f"{key}=100: ") and hint in str(error)


@pytest.mark.parametrize("name", ["oracle", "", "LongFlow", "longflow ", None, 3, ["longflow"], {}])
def test_unknown_policy_is_refused_with_the_known_ones(name):
    error = refusal({"kv_policy": name}, BOUNDED)
    assert error.reason == "unknown_policy"
    assert str(error).startswith(f"kv_policy={name!r}: ")
    assert "longflow" in str(error)
    assert "streaming" in str(error)


def test_unknown_policy_is_named_before_a_wrong_budget():
    assert refusal({"kv_policy": "x", "kv_budget": -1}, BOUNDED).reason == "unknown_policy"


def test_a_policy_that_the_server_has_no_memory_for_is_refused():
    error = refusal({"kv_policy": "h2o"}, BOUNDED)
    assert error.reason == "unserved_policy"
    assert "kv_policy='h2o'" in str(error) and "--kv-policy longflow" in str(error)
    vatp = LongFlowConfig(kv_budget=100, kv_policy="vatp")
    for name in ("vatp", "h2o", "h2o-last", "keydiff", "longflow", "streaming"):
        assert resolve_budget({"kv_policy": name}, vatp).policy.name == name
    assert refusal({"kv_policy": "rkv"}, vatp).reason == "unserved_policy"


def test_a_policy_that_the_kernel_does_not_rank_by_is_refused():
    fused = LongFlowConfig(kv_budget=100, kv_decode_kernel="triton")
    assert resolve_budget({"kv_policy": "tova"}, fused).policy.name == "tova"
    assert refusal({"kv_policy": "keydiff"}, fused).reason == "unserved_policy"


def test_policy_override_keeps_the_servers_protections():
    protected = dict(kv_protect_sink_tokens=4, kv_protect_recent_tokens=6)
    config = LongFlowConfig(kv_budget=100, kv_policy="longflow", **protected)
    got = resolve_budget({"kv_policy": "streaming"}, config).policy
    assert (got.name, got.protect_sink_tokens, got.protect_recent_tokens) == ("streaming", 4, 6)


def test_policy_override_brings_its_own_minimum():
    config = LongFlowConfig(kv_budget=100, kv_policy="streaming")
    assert resolve_budget({"kv_budget": 2}, config).tokens == 2
    assert refusal({"kv_budget": 1}, config).reason == "below_policy_minimum"
    error = refusal({"kv_budget": 2, "kv_policy": "longflow"}, config)
    assert error.reason == "below_policy_minimum"
    assert "34" in str(error)
    assert "'longflow'" in str(error)


def test_server_default_below_the_other_policys_minimum_is_refused_not_rounded():
    config = LongFlowConfig(kv_budget=10, kv_policy="streaming")
    assert refusal({"kv_policy": "longflow"}, config).reason == "below_policy_minimum"


def test_streaming_with_longflow_server_may_go_below_longflows_minimum():
    assert resolve_budget({"kv_budget": 2, "kv_policy": "streaming"}, PUBLISHED).tokens == 2


@pytest.mark.parametrize("config", [FULL_TOO, FULL_DEFAULT])
def test_zero_is_full_kv_where_allowed(config):
    got = resolve_budget({"kv_budget": 0}, config)
    assert got.is_full
    assert not got.must_cut(10**9)
    assert not got.may_overwrite(10**9, 10**9)
    assert got.resident(12345) == 12345


def test_zero_ignores_bounds_where_full_is_allowed():
    config = LongFlowConfig(
        kv_budget=100, kv_budget_min=50, kv_budget_max=200, kv_budget_allow_full=True
    )
    assert resolve_budget({"kv_budget": 0}, config).is_full


def test_equal_requests_get_equal_budgets_so_that_they_share_a_group():
    one = resolve_budget({"kv_budget": 60}, BOUNDED)
    two = resolve_budget({"kv_budget": 60}, BOUNDED)
    assert one == two
    assert hash(one) == hash(two)
    assert one != resolve_budget({"kv_budget": 60, "kv_policy": "streaming"}, BOUNDED)


@pytest.mark.parametrize(
    ("params", "asks"),
    [
        (None, False),
        ({}, False),
        ({"budget": 5}, False),
        ({"kv_budget": None}, True),
        ({"kv_budget": 0}, True),
        ({"kv_policy": "streaming"}, True),
    ],
)
def test_asking_means_naming_one_of_our_keys(params, asks):
    assert asks_for_budget(params) is asks


# contracts.KVBudget


@pytest.mark.parametrize(("prompt", "cut"), [(0, False), (63, False), (64, True), (65, True)])
def test_prompt_over_budget_minus_one_is_cut(prompt, cut):
    assert KVBudget(64, BOUNDED.policy()).must_cut(prompt) is cut


@pytest.mark.parametrize(("new", "overwrites"), [(0, False), (54, False), (55, True)])
def test_overwriting_starts_one_past_the_budget(new, overwrites):
    assert KVBudget(64, BOUNDED.policy()).may_overwrite(10, new) is overwrites


@pytest.mark.parametrize(("length", "resident"), [(0, 0), (63, 63), (64, 64), (65, 64)])
def test_resident_length_stops_at_the_budget(length, resident):
    assert KVBudget(64, BOUNDED.policy()).resident(length) == resident


# check_fits


@pytest.mark.parametrize(
    ("tokens", "prompt", "new", "peak"),
    [(100, 10, 10**6, 100), (100, 10, 40, 50), (100, 500, 10**6, 502), (0, 10, 90, 100)],
)
def test_fits_up_to_exactly_its_peak(tokens, prompt, new, peak):
    budget = KVBudget(tokens, BOUNDED.policy())
    assert max(peak_slots(budget, prompt, new), prefill_slots(prompt)) == peak
    check_fits(budget, prompt, new, peak)
    check_fits(budget, prompt, new, peak + 1)
    with pytest.raises(BudgetError) as caught:
        check_fits(budget, prompt, new, peak - 1)
    assert caught.value.reason == "never_fits"
    for part in (
        f"kv_budget={tokens} ",
        f"prompt_tokens={prompt} ",
        f"max_new_tokens={new} ",
        f"needs {peak} ",
        f"holds {peak - 1}:",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([], "no tokens"),
        ([3, 512], r"input_ids\[1\]=512"),
        ([-1], r"input_ids\[0\]=-1"),
        ([3, True], r"input_ids\[1\]=True"),
        ([3.0], r"input_ids\[0\]=3.0"),
        ("text", "expected a list of token ids"),
        (7, "expected a list of token ids"),
    ],
)
def test_prompts_that_the_model_does_not_have(ids, says):
    with pytest.raises(BudgetError, match=says):
        check_input_ids(ids, 512)


def test_prompts_that_it_has():
    for ids in (None, [0], [511, 0, 3], array("q", [3, 4]), (3, 4)):
        check_input_ids(ids, 512)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, None),
        ([3, 4], None),
        ([3, None], None),
        ([3, 512], [3]),
        ([-1], []),
        (["600", "5"], [5]),
        (["x"], None),  # SGLang's own conversion says what is wrong
        (1e308, None),
        ({3, 10**9}, [3]),
    ],
)
def test_stop_tokens_are_those_that_can_be_produced(given, kept):
    assert stop_ids_in_vocabulary(given, 512) == kept
