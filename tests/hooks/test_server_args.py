# SPDX-License-Identifier: Apache-2.0
"""`longflow serve` and the server's own process judge settings alike."""

from __future__ import annotations

import enum
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang_longflow.errors import ConfigError, LongFlowError, UnsupportedSetup
from sglang_longflow.hooks import server_args
from sglang_longflow.server.preflight import find_model
from sglang_longflow.settings import device, preflight
from sglang_longflow.settings.problem import Problem
from sglang_longflow.settings.refused_models import language_model

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


@pytest.fixture(autouse=True)
def _sglang(monkeypatch):
    """The little of SGLang that a start reads."""
    for name, content in (
        ("configs.model_config", {"AttentionArch": Arch}),
        ("environ", {"envs": SimpleNamespace(SGLANG_RUST_SERVER=SimpleNamespace(get=bool))}),
    ):
        module = ModuleType(f"sglang.srt.{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)


class Arguments(SimpleNamespace):
    """ServerArgs, and what SGLang makes of its model."""

    def get_model_config(self):
        config = json.loads(open(f"{self.model_path}/config.json").read())
        text = SimpleNamespace(to_dict=lambda: config, model_type=config["model_type"])
        heads, size = config["num_attention_heads"], config.get("head_dim", 64)
        return SimpleNamespace(
            hf_text_config=text,
            is_multimodal=config != language_model(config),
            attention_arch=Arch.MLA if "kv_lora_rank" in config else Arch.MHA,
            num_attention_heads=heads,
            get_total_num_kv_heads=lambda: config["num_key_value_heads"],
            head_dim=size,
            v_head_dim=size,
            context_len=self.context_length or config["max_position_embeddings"],
        )


def resolved(arguments) -> None:
    """What SGLang's own ``__post_init__`` does here."""
    arguments.device = arguments.device or ("cuda" if device.gpu_count() else "cpu")


def the_server_says(values) -> str:
    try:
        server_args.post_init(resolved, Arguments(**{**DEFAULTS, **values}))
    except LongFlowError as error:
        return str(error)
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


def test_sglang_has_the_last_word_on_the_context(models):
    """A model whose config does not tell: SGLang's default counts."""
    values = {**DEFAULTS, "model_path": models["plain"], "kv_budget": 3000}
    arguments = Arguments(**values)
    told = arguments.get_model_config()
    told.context_len = 2048
    arguments.get_model_config = lambda: told
    with pytest.raises(
        UnsupportedSetup, match=r"^kv_budget=3000: over the model's context of 2048"
    ):
        server_args.post_init(resolved, arguments)


def test_a_problem_of_an_error_has_its_fix():
    found = Problem.of(ConfigError("kv_budget=3: below the minimum 38; set --kv-budget 38 or more"))
    assert found == Problem("kv_budget=3: below the minimum 38", "set --kv-budget 38 or more")
