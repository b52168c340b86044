# SPDX-License-Identifier: Apache-2.0
"""`longflow serve` and the server's own process judge settings alike."""

from __future__ import annotations

import argparse
import enum
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang_longflow.errors import ConfigError, HookNotApplied, UnsupportedSetup
from sglang_longflow.hooks import server_args, verify
from sglang_longflow.server.preflight import find_model
from sglang_longflow.settings import compatibility, device, preflight
from sglang_longflow.settings.flags import FLAG_NAMES
from sglang_longflow.settings.problem import Problem
from sglang_longflow.settings.refused_models import language_model
from sglang_longflow.settings.resolved import resolved

LLAMA = {
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 256,
    "max_position_embeddings": 4096,
}
MODELS = {
    "plain": LLAMA,
    "small context": {**LLAMA, "max_position_embeddings": 64},
    "odd heads": {**LLAMA, "head_dim": 80},
    "MLA": {**LLAMA, "kv_lora_rank": 512},
    "windows": {**LLAMA, "sliding_window": 256},
}
#: Of ServerArgs, as far as anything here reads it.
DEFAULTS = dict(
    revision=None, json_model_override_args="{}", enable_multimodal=None, load_format="auto",
    device=None, tp_size=1, pp_size=1, dp_size=1, nnodes=1, base_gpu_id=0, gpu_id_step=1,
    page_size=None, attention_backend=None, prefill_attention_backend=None,
    decode_attention_backend=None, disable_cuda_graph=False, disable_prefill_cuda_graph=False,
    sleep_on_idle=False, context_length=None, max_total_tokens=None, use_ray=False,
    chunked_prefill_size=None, speculative_algorithm=None, enable_mixed_chunk=False,
    kv_budget=None, kv_policy="longflow-novel", kv_budget_min=None, kv_budget_max=None,
    kv_budget_allow_full=False, kv_protect_sink_tokens=0, kv_protect_recent_tokens=0,
    kv_victims="layer", kv_decode_kernel="auto", kv_planned_rows=None,
)  # fmt: skip
#: A mistake or two among many values that are none.
VALUES = {
    "kv_budget": [96, 96, 96, 0, 38, 37, 100, 5000, "96", True, None],
    "kv_policy": ["longflow", "longflow-novel", "streaming", "h2o", "nonsense"],
    "kv_budget_min": [None, 40, 3],
    "kv_budget_max": [None, 200, 90, 9000],
    "kv_budget_allow_full": [False, True],
    "kv_protect_sink_tokens": [0, 4, -1],
    "kv_victims": ["layer", "kv_head", "row"],
    "kv_decode_kernel": ["auto", "triton", "reference"],
    "page_size": [None, 1, 16],
    "attention_backend": [None, "flashinfer", "trtllm_mha"],
    "speculative_algorithm": [None, "EAGLE"],
    "enable_mixed_chunk": [False, True],
    "chunked_prefill_size": [None, -1, 32, 64],
    "context_length": [None, 80, 4096],
    "max_total_tokens": [None, 50, 100_000],
    "tp_size": [1, 2, 4],
    "device": [None, "cpu", "cuda"],
}
some_settings = st.dictionaries(st.sampled_from(sorted(VALUES)), st.integers(0, 99), max_size=6)


#: Variables of SGLang that a start with a budget reads.
VARIABLES = (
    *("SGLANG_PLUGINS", "SGLANG_PLATFORM"),
    *(rule.name for rule in compatibility.VARIABLE_RULES),
)


class Arch(enum.Enum):
    MLA = 1
    MHA = 2


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    found = {}
    for name, config in MODELS.items():
        folder = tmp_path_factory.mktemp("models") / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").touch()
        found[name] = str(folder)
    return found


class Record(SimpleNamespace):
    """ServerArgs: what the operator typed, and SGLang's list of what was decided."""


class View:
    """SGLang's read view: the last decision on a field, else the operator's word."""

    def __init__(self, record):
        self.record = record

    def __getattr__(self, name):
        for _, fields in reversed(self.record._resolved_overrides):
            if name in fields:
                return fields[name]
        return getattr(self.record, name)


def declare(record, source, **fields):
    record._resolved_overrides.append((source, fields))


def model_config(record):
    """What SGLang makes of the model."""
    config = json.loads(open(f"{record.model_path}/config.json").read())
    text = SimpleNamespace(to_dict=lambda: config, model_type=config["model_type"])
    heads, size = config["num_attention_heads"], config.get("head_dim", 64)
    return SimpleNamespace(
        hf_text_config=text,
        hf_config=text,
        is_multimodal=config != language_model(config),
        attention_arch=Arch.MLA if "kv_lora_rank" in config else Arch.MHA,
        num_attention_heads=heads,
        get_total_num_kv_heads=lambda: config["num_key_value_heads"],
        head_dim=size,
        v_head_dim=size,
        context_len=record.context_length or config["max_position_embeddings"],
    )


@pytest.fixture(autouse=True)
def sglang(monkeypatch):
    """The little of SGLang that a start reads, by module."""
    contents = {
        "configs.model_config": {"AttentionArch": Arch},
        "environ": {"envs": SimpleNamespace(**dict.fromkeys(VARIABLES, SimpleNamespace(get=bool)))},
        "arg_groups.overrides": {"declare_resolution": declare},
        "arg_groups.model_override_base": {
            "resolving_view": View,
            "model_config_of": model_config,
        },
    }
    monkeypatch.setattr(verify, "require_all", lambda: None)
    modules = {}
    for name, content in contents.items():
        module = modules[name] = ModuleType(f"sglang.srt.{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return modules


def stock_from_cli_args(cls, arguments):
    """As SGLang's own: its fields alone, and nothing decided yet."""
    fields = {name: value for name, value in vars(arguments).items() if name not in FLAG_NAMES}
    return cls(**fields)


def resolve(record):
    """SGLang's resolution, with the two steps that ours stand around."""
    record._resolved_overrides = list(getattr(record, "_resolved_overrides", ()))

    def fill_in(record):
        there = "cuda" if device.gpu_count() else "cpu"
        declare(record, "missing", device=View(record).device or there)

    server_args.before_defaults(record, fill_in)
    server_args.after_resolution(record, lambda record: None)
    return record


def started(values):
    """The settings of a command line, as far as they get."""
    arguments = argparse.Namespace(**{**DEFAULTS, **values})
    return resolve(server_args.from_cli_args(stock_from_cli_args, Record, arguments))


def the_server_says(values) -> str:
    """The line that ends a start; empty if it does not end."""
    try:
        started(values)
    except SystemExit as end:
        return str(end).removeprefix("longflow: error: ")
    return ""


def serve_says(values) -> str:
    model, problem, _ = find_model(values)
    problems = preflight.judge(values) or ([problem] if problem else preflight.judge(values, model))
    return str(problems[0]) if problems else ""


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(some_settings, st.sampled_from(sorted(MODELS)), st.integers(0, 2))
def test_serve_and_the_server_say_the_same(models, chosen, model, gpus):
    values = {name: VALUES[name][place % len(VALUES[name])] for name, place in chosen.items()}
    values["model_path"] = models[model]
    values.setdefault("kv_budget", 96)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "gpu_count", lambda: gpus)
        patch.setattr(device, "first_gpu_bytes", lambda: 24 << 30)
        said = serve_says(values)
        if values["kv_budget"] is None and not said.startswith("kv_"):
            return  # a server without a budget is SGLang's own affair
        assert the_server_says(values) == said


def test_both_ask_the_one_function(monkeypatch, models):
    values = {"model_path": models["plain"], "kv_budget": 96}
    assert the_server_says(values) == serve_says(values) == ""
    found = [Problem("field=1: too much", "set it to 0")]
    monkeypatch.setattr(preflight, "judge", lambda *_: found)
    assert the_server_says(values) == serve_says(values) == "field=1: too much; set it to 0"


def test_sglang_has_the_last_word_on_the_context(models, sglang):
    """A model whose config does not tell: SGLang's default counts."""

    def told(record):
        return SimpleNamespace(**{**vars(model_config(record)), "context_len": 2048})

    sglang["arg_groups.model_override_base"].model_config_of = told
    values = {"model_path": models["plain"], "kv_budget": 3000}
    assert serve_says(values) == ""
    assert the_server_says(values).startswith("kv_budget=3000: over the model's context of 2048")


def test_what_sglang_decided_is_judged_not_what_was_typed(models):
    """Its own steps may set what does not go with a budget."""
    values = {**DEFAULTS, "model_path": models["plain"], "kv_budget": 96}
    record = Record(**values, _resolved_overrides=[("model", {"page_size": 64})])
    setattr(record, server_args.DECLARED, 96)
    with pytest.raises(UnsupportedSetup, match=r"^page_size=64: .*; set --page-size 1"):
        server_args.after_resolution(record, lambda record: None)
    assert record.page_size is None and not hasattr(record, server_args.CHECKED)


def test_defaults_are_declared_and_the_operators_record_stays(models):
    record = started({"model_path": models["plain"], "kv_budget": 96, "device": "cpu"})
    assert ("longflow", {"page_size": 1, "sleep_on_idle": True}) in record._resolved_overrides
    assert record.page_size is None and resolved(record).page_size == 1
    assert getattr(record, server_args.CHECKED) == 96
    assert getattr(record, server_args.GRAPHS_COVER_ROWS) is False


def test_a_model_that_was_never_run_with_a_budget_gets_a_word(models, sglang, caplog):
    def another_kind(record):
        model = model_config(record)
        fields = {**model.hf_text_config.to_dict(), "model_type": "phi3"}
        model.hf_config = model.hf_text_config = SimpleNamespace(
            to_dict=lambda: fields, model_type="phi3"
        )
        return model

    values = {"model_path": models["plain"], "kv_budget": 96}
    started(values)
    assert "longflow" not in caplog.text
    sglang["arg_groups.model_override_base"].model_config_of = another_kind
    started(values)
    assert "longflow: model_type='phi3': its attention is ordinary, but no model" in caplog.text


def test_without_a_budget_nothing_is_declared_or_judged(models):
    record = started({"model_path": models["MLA"], "speculative_algorithm": "EAGLE"})
    assert [source for source, _ in record._resolved_overrides] == ["missing"]
    assert record.kv_budget is None and not hasattr(record, server_args.CHECKED)


def test_an_engine_gets_the_exception_and_a_command_line_its_line(models):
    """A program can catch it; an operator would have to find it in a traceback."""
    values = {**DEFAULTS, "model_path": models["plain"], "kv_budget": 96}

    def engine(**more):
        return resolve(server_args.engine_settings(Record, **{**values, **more}))

    assert getattr(engine(), server_args.CHECKED) == 96
    with pytest.raises(UnsupportedSetup, match=r"^speculative_algorithm='EAGLE'"):
        engine(speculative_algorithm="EAGLE")
    # A hub's model: only SGLang, which has fetched it, knows what it is.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_args, "find_config", lambda *_, **__: None)
        with pytest.raises(UnsupportedSetup, match=r"^model_type='llama': MLA attention"):
            engine(model_path=models["MLA"])
        said = the_server_says({"model_path": models["MLA"], "kv_budget": 96})
    assert said.startswith("model_type='llama': MLA attention")


def test_settings_without_our_defaults_are_not_judged_fine(models):
    """The first step ran without us: another plugin's stands around it, and calls nobody."""
    record = Record(**{**DEFAULTS, "model_path": models["plain"], "kv_budget": 96})
    with pytest.raises(HookNotApplied, match="in its step handle_missing_default_values"):
        server_args.after_resolution(record, lambda record: None)
    assert not hasattr(record, server_args.CHECKED)


def test_our_defaults_are_declared_once(models):
    record = started({"model_path": models["plain"], "kv_budget": 96, "device": "cpu"})
    declared = list(record._resolved_overrides)
    server_args.before_defaults(record, lambda record: None)
    assert record._resolved_overrides == declared


@pytest.mark.parametrize("name", [rule.name for rule in compatibility.VARIABLE_RULES])
def test_variables_of_sglang_that_do_not_go_with_a_budget(models, sglang, name):
    setattr(sglang["environ"].envs, name, SimpleNamespace(get=lambda: True))
    values = {"model_path": models["plain"], "kv_budget": 96}
    said = the_server_says(values)
    assert said.startswith(f"{name}=1: ") and said.endswith(f"; unset {name}")
    assert the_server_says({**values, "kv_budget": None}) == ""


def test_a_record_that_takes_no_attribute_is_named(models):
    class Closed:
        __slots__ = ("model_path",)

        def __init__(self, model_path, **_):
            self.model_path = model_path

    assert server_args.engine_settings(Closed, model_path="m").model_path == "m"
    with pytest.raises(HookNotApplied, match=r"^kv_budget=96: SGLang's Closed takes no settings"):
        server_args.engine_settings(Closed, model_path="m", kv_budget=96)
    with pytest.raises(HookNotApplied, match=r"^kv_policy=tova: SGLang's Closed takes no"):
        server_args.engine_settings(Closed, model_path="m", kv_policy="tova")


def test_a_problem_of_an_error_has_its_fix():
    found = Problem.of(ConfigError("kv_budget=3: below the minimum 38; set --kv-budget 38 or more"))
    assert found == Problem("kv_budget=3: below the minimum 38", "set --kv-budget 38 or more")
