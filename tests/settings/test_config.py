# SPDX-License-Identifier: Apache-2.0
"""The one configuration: every wrong value is refused by name; no budget means inert."""

import contextlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from sglang_longflow.core.request import resolve_budget
from sglang_longflow.errors import BudgetError, ConfigError, LongFlowError
from sglang_longflow.measure.variants import parse_variant
from sglang_longflow.policies import policy_names
from sglang_longflow.settings.config import LongFlowConfig, config_from, unknown_policy
from sglang_longflow.settings.flags import FLAG_NAMES, FLAGS

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))

FUSED = ("longflow", "streaming", "tova", "random")
NOVEL = {"kv_budget": 96, "kv_policy": "longflow-novel", "kv_decode_kernel": "triton"}


def test_defaults():
    config = LongFlowConfig(kv_budget=64)
    assert config.as_dict() == {
        "kv_budget": 64,
        "kv_policy": "longflow-novel",
        "kv_budget_min": None,
        "kv_budget_max": 64,  # full KV is refused, and a large budget is full KV by another name
        "kv_budget_allow_full": False,
        "kv_protect_sink_tokens": 0,
        "kv_protect_recent_tokens": 0,
        "kv_victims": "layer",
        "kv_decode_kernel": "reference",
        "kv_planned_rows": None,
    }


def test_flags_and_fields_are_the_same():
    fields = LongFlowConfig(kv_budget=64).as_dict()
    assert tuple(fields) == FLAG_NAMES
    for flag in FLAGS[1:]:
        # "auto" depends on the device, the maximum on what else is set
        if flag.name not in ("kv_decode_kernel", "kv_budget_max"):
            assert fields[flag.name] == flag.default
        assert flag.help.endswith(".")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kv_budget": True}, "kv_budget=True: expected an integer"),
        ({"kv_budget": 64.0}, "kv_budget=64.0: expected an integer"),
        ({"kv_budget": "64"}, "kv_budget='64': expected an integer"),
        ({"kv_budget": -1}, "kv_budget=-1: below the minimum 38"),
        ({"kv_budget": 64, "kv_planned_rows": 0}, "kv_planned_rows=0: expected an integer >= 1"),
        ({"kv_budget": 64, "kv_planned_rows": True}, "kv_planned_rows=True: expected an integer"),
        ({"kv_budget": 0, "kv_planned_rows": 9}, "kv_planned_rows=9: rows of full KV"),
        ({"kv_budget": 37}, "kv_budget=37: below the minimum 38"),
        ({"kv_budget": 33, "kv_policy": "longflow"}, "kv_budget=33: below the minimum 34"),
        ({"kv_budget": 1, "kv_policy": "streaming"}, "kv_budget=1: below the minimum 2"),
        ({"kv_budget": 64, "kv_budget_min": 65}, "kv_budget=64: below the minimum 65"),
        ({"kv_budget": 64, "kv_budget_min": 37}, "kv_budget_min=37: below 38"),
        ({"kv_budget": 64, "kv_budget_min": 0}, "kv_budget_min=0: below 38"),
        ({"kv_budget": 64, "kv_budget_min": False}, "kv_budget_min=False: expected an integer"),
        ({"kv_budget": 64, "kv_budget_max": 63}, "kv_budget=64: above kv_budget_max=63"),
        ({"kv_budget": 64, "kv_budget_max": 37}, "kv_budget_max=37: below the minimum 38"),
        ({"kv_budget": 64, "kv_budget_max": "9"}, "kv_budget_max='9': expected an integer"),
        (
            {"kv_budget": 0, "kv_budget_min": 90, "kv_budget_max": 80},
            "kv_budget_max=80: below the minimum 90",
        ),
        (
            {"kv_budget": 64, "kv_policy": "nope"},
            "kv_policy='nope': unknown policy; known: longflow",
        ),
        ({"kv_budget": 64, "kv_policy": ""}, "kv_policy='': unknown policy"),
        ({"kv_budget": 64, "kv_victims": "head"}, "kv_victims='head': expected one of layer, kv_"),
        ({"kv_budget": 64, "kv_decode_kernel": ""}, "kv_decode_kernel='': expected one of auto"),
        (
            {"kv_budget": 64, "kv_victims": "kv_head", "kv_decode_kernel": "reference"},
            "kv_victims='kv_head': the decode of kv_decode_kernel='reference' has one victim per",
        ),
        (
            {"kv_budget": 64, "kv_victims": "kv_head"},
            "kv_victims='kv_head': the decode of kv_decode_kernel='reference' has one victim",
        ),
        (
            {**NOVEL, "kv_victims": "kv_head"},
            "kv_victims='kv_head': 'longflow-novel' compares tokens over all KV heads, so it has",
        ),
        ({**NOVEL, "kv_budget": 37}, "kv_budget=37: below the minimum 38"),
        ({"kv_budget": 64, "kv_protect_sink_tokens": -1}, "kv_protect_sink_tokens=-1"),
        ({"kv_budget": 64, "kv_protect_sink_tokens": True}, "kv_protect_sink_tokens=True"),
        ({"kv_budget": 64, "kv_protect_recent_tokens": 1.0}, "kv_protect_recent_tokens=1.0"),
        ({"kv_budget": 64, "kv_protect_sink_tokens": 31}, "kv_budget=64: below the minimum 65"),
        (
            {"kv_budget": 64, "kv_protect_sink_tokens": 20, "kv_protect_recent_tokens": 43},
            "kv_budget=64: below the minimum 65",
        ),
    ],
)
def test_wrong_settings_are_refused_by_name_and_value(settings, message):
    with pytest.raises(ConfigError) as caught:
        LongFlowConfig(**settings)
    assert str(caught.value).startswith(message)
    assert isinstance(caught.value, LongFlowError)


@pytest.mark.parametrize(
    "settings",
    [
        {"kv_budget": 38},
        {"kv_budget": 34, "kv_policy": "longflow"},
        {"kv_budget": 2, "kv_policy": "streaming"},
        {"kv_budget": 0},
        {"kv_budget": 64, "kv_budget_min": 64, "kv_budget_max": 64},
        {"kv_budget": 64, "kv_protect_sink_tokens": 30},
        {"kv_budget": 0, "kv_budget_min": 50, "kv_budget_max": 60},
    ],
)
def test_settings_on_the_edge_are_accepted(settings):
    assert LongFlowConfig(**settings).kv_budget == settings["kv_budget"]


@pytest.mark.parametrize("kernel", ["reference", "triton"])
@pytest.mark.parametrize("own", ["longflow-novel", "longflow", "streaming"])
def test_policies_allowed_are_those_that_a_request_may_name(own, kernel):
    config = LongFlowConfig(kv_budget=96, kv_policy=own, kv_decode_kernel=kernel)
    taken = []
    for name in policy_names():
        with contextlib.suppress(BudgetError):
            taken.append(resolve_budget({"kv_policy": name}, config).policy.name)
    assert sorted(config.policies_allowed) == sorted(taken)
    assert config.policies_allowed[0] == own


def test_config_is_immutable():
    with pytest.raises(AttributeError):
        LongFlowConfig(kv_budget=64).kv_budget = 65


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"kv_budget": 64}, False),
        ({"kv_budget": 64, "kv_budget_allow_full": True}, True),
        ({"kv_budget": 0}, True),
    ],
)
def test_full_kv_is_allowed_by_flag_or_by_default(settings, allowed):
    assert LongFlowConfig(**settings).allows_full is allowed


def test_policies_come_with_the_servers_protections():
    protected = dict(kv_protect_sink_tokens=3, kv_protect_recent_tokens=5)
    config = LongFlowConfig(kv_budget=64, kv_policy="longflow", **protected)
    for name in (None, "longflow", "streaming"):
        policy = config.policy(name)
        assert policy.name == (name or "longflow")
        assert (policy.protect_sink_tokens, policy.protect_recent_tokens) == (3, 5)


def test_what_the_servers_policy_keeps_is_kept_in_all_rows():
    config = LongFlowConfig(**NOVEL, kv_protect_sink_tokens=2)
    own, other = config.policy(), config.policy("tova")
    assert own == config.policy("longflow-novel")
    for policy in (own, other):
        assert (policy.first_tokens_kept, policy.recent_tokens_kept) == (4, 16)
        assert policy.min_budget_tokens == 38
    # A first token of vatp's is its own affair; the reference decode asks each policy.
    vatp = LongFlowConfig(kv_budget=72, kv_policy="vatp", kv_decode_kernel="reference")
    assert (vatp.policy().first_tokens_kept, vatp.policy("h2o").first_tokens_kept) == (20, 0)


def test_the_kernels_have_one_decay_the_servers():
    fused = LongFlowConfig(**NOVEL)
    served = [name for name in policy_names() if fused.serves(fused.policy(name))]
    assert served == [*FUSED, "longflow-peak", "longflow-novel"]
    other = replace(fused.policy("longflow-peak"), decay=0.9)
    assert not fused.serves(other)
    peak = LongFlowConfig(**{**NOVEL, "kv_policy": "longflow-peak"})
    served = [name for name in policy_names() if peak.serves(peak.policy(name))]
    assert served == [*FUSED, "longflow-peak"]  # it has no memory of similarity
    reference = LongFlowConfig(**{**NOVEL, "kv_decode_kernel": "reference"})
    assert reference.serves(replace(reference.policy("longflow-peak"), decay=0.9))


# config_from


@pytest.mark.parametrize(
    "source",
    [
        SimpleNamespace(),
        SimpleNamespace(model_path="x", kv_budget=None),
        SimpleNamespace(**{flag.name: flag.default for flag in FLAGS}),
    ],
)
def test_without_a_budget_the_plugin_is_inert(source):
    assert config_from(source) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kv_policy", "streaming"),
        ("kv_policy", "unknown"),
        ("kv_budget_min", 64),
        ("kv_budget_max", 64),
        ("kv_budget_allow_full", True),
        ("kv_protect_sink_tokens", 4),
        ("kv_protect_recent_tokens", 4),
        ("kv_victims", "kv_head"),
        ("kv_decode_kernel", "triton"),
    ],
)
def test_any_setting_without_a_budget_is_refused(name, value):
    source = SimpleNamespace(**{flag.name: flag.default for flag in FLAGS})
    setattr(source, name, value)
    with pytest.raises(ConfigError, match=rf"{name}={value!r} has no effect without kv_budget"):
        config_from(source)


@pytest.mark.parametrize("budget", [0, 64])
def test_missing_attributes_get_their_defaults(budget):
    assert config_from(SimpleNamespace(kv_budget=budget)) == LongFlowConfig(kv_budget=budget)


@pytest.mark.parametrize(
    ("device", "has_gpu", "kernel"),
    [
        (None, True, "triton"),
        ("cuda", True, "triton"),
        ("cpu", True, "reference"),
        (None, False, "reference"),
        ("cpu", False, "reference"),
    ],
)
def test_auto_is_the_fused_kernel_on_a_gpu_only(monkeypatch, device, has_gpu, kernel):
    monkeypatch.setattr("sglang_longflow.settings.device.gpu_count", lambda: int(has_gpu))
    source = SimpleNamespace(kv_budget=64, kv_decode_kernel="auto", device=device)
    assert config_from(source).kv_decode_kernel == kernel
    source.kv_decode_kernel = "reference"
    assert config_from(source).kv_decode_kernel == "reference"


def test_auto_is_the_reference_decode_for_policies_the_kernel_does_not_have(monkeypatch):
    monkeypatch.setattr("sglang_longflow.settings.device.gpu_count", lambda: 1)
    source = SimpleNamespace(kv_budget=64, kv_policy="h2o", kv_decode_kernel="auto", device=None)
    assert config_from(source).kv_decode_kernel == "reference"
    source.kv_decode_kernel = "triton"
    with pytest.raises(ConfigError, match="kv_policy='h2o': the triton decode kernel does not"):
        config_from(source)


def test_values_arrive_where_they_belong():
    values = {
        "kv_budget": 100,
        "kv_policy": "streaming",
        "kv_budget_min": 50,
        "kv_budget_max": 200,
        "kv_budget_allow_full": True,
        "kv_protect_sink_tokens": 4,
        "kv_protect_recent_tokens": 6,
        "kv_victims": "kv_head",
        "kv_decode_kernel": "triton",
        "kv_planned_rows": 118,
    }
    assert config_from(SimpleNamespace(**values)).as_dict() == values


def test_a_wrong_value_is_refused_every_time():
    for _ in range(3):
        with pytest.raises(ConfigError, match="kv_budget=7"):
            config_from(SimpleNamespace(kv_budget=7))


@pytest.mark.parametrize(("first", "second"), [(70, 70.0), (0, False)])
def test_validation_does_not_depend_on_what_was_read_before(first, second):
    config_from(SimpleNamespace(kv_budget=first))
    with pytest.raises(ConfigError, match="expected an integer"):
        config_from(SimpleNamespace(kv_budget=second))


def test_a_list_is_refused_like_any_other_wrong_value():
    with pytest.raises(ConfigError, match="expected an integer"):
        config_from(SimpleNamespace(kv_budget=[64]))


# configs/*.yaml


def test_there_are_configs():
    assert "default.yaml" in [path.name for path in CONFIGS]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configs_parse_and_hold_known_and_valid_settings(path):
    settings = yaml.safe_load(path.read_text())
    assert all(isinstance(key, str) and "_" not in key for key in settings)
    ours = {k.replace("-", "_"): v for k, v in settings.items() if k.startswith("kv-")}
    ours = {k: v for k, v in ours.items() if k not in SGLANG_KV}
    assert set(ours) <= set(FLAG_NAMES)
    assert config_from(SimpleNamespace(**ours)) is not None


#: SGLang has arguments of its own that begin with kv.
SGLANG_KV = {"kv_cache_dtype", "kv_events_config"}


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"kv_budget": 64}, 64),
        ({"kv_budget": 64, "kv_budget_allow_full": True}, 1000),
        ({"kv_budget": 64, "kv_budget_max": 80}, 80),
        ({"kv_budget": 64, "kv_budget_max": 80, "kv_budget_allow_full": True}, 1000),
        ({"kv_budget": 0, "kv_budget_max": 80}, 1000),
        ({"kv_budget": 64, "kv_budget_max": 5000}, 1000),
    ],
)
def test_most_tokens_that_a_row_can_hold(settings, tokens):
    assert LongFlowConfig(**settings).row_tokens(1000) == tokens


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({"kv_budget": 64}, 64),
        ({"kv_budget": 64, "kv_budget_min": 50}, 64),
        ({"kv_budget": 64, "kv_budget_max": 80}, 80),
        ({"kv_budget": 64, "kv_budget_allow_full": True}, None),
        ({"kv_budget": 64, "kv_budget_max": 80, "kv_budget_allow_full": True}, 80),
        ({"kv_budget": 0}, None),
        ({"kv_budget": 0, "kv_budget_max": 80}, 80),
    ],
)
def test_the_largest_budget_that_a_request_may_ask_for(settings, most):
    """Where full KV is refused there is one, also from SGLang's arguments, where it is not set."""
    config = LongFlowConfig(**settings)
    assert config.kv_budget_max == most
    assert config_from(SimpleNamespace(**settings)).kv_budget_max == most
    if most is None:
        assert resolve_budget({"kv_budget": 99_999}, config).tokens == 99_999
        return
    assert resolve_budget({"kv_budget": most}, config).tokens == most
    for tokens in (most + 1, 99_999):
        with pytest.raises(BudgetError, match=rf"^kv_budget={tokens}: above .* maximum {most} \("):
            resolve_budget({"kv_budget": tokens}, config)


@pytest.mark.parametrize("name", ["nope", ""])
def test_an_unknown_policy_is_said_in_the_same_words_everywhere(name):
    wrong = unknown_policy(name)
    assert wrong == f"unknown policy; known: {', '.join(policy_names())}"
    refusals = [
        (ConfigError, lambda: LongFlowConfig(kv_budget=64, kv_policy=name)),
        (BudgetError, lambda: resolve_budget({"kv_policy": name}, LongFlowConfig(kv_budget=64))),
        (ConfigError, lambda: parse_variant(name)),
    ]
    for error, refused in refusals:
        with pytest.raises(error) as caught:
            refused()
        assert str(caught.value).endswith(f"={name!r}: {wrong}")


@pytest.mark.parametrize("name", policy_names())
def test_nothing_is_wrong_with_a_known_policy(name):
    assert unknown_policy(name) is None
