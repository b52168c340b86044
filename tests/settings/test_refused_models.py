# SPDX-License-Identifier: Apache-2.0
"""One list of models that cannot have a budget, for the planner, doctor, serve and the server."""

from __future__ import annotations

import enum
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from sglang_longflow.errors import UnsupportedSetup
from sglang_longflow.planner.geometry import PlanError, load_geometry
from sglang_longflow.server.doctor import check_server_arguments
from sglang_longflow.server.preflight import find_model
from sglang_longflow.settings import compatibility, preflight
from sglang_longflow.settings.builtin_models import builtin_config
from sglang_longflow.settings.config import LongFlowConfig
from sglang_longflow.settings.refused_models import (
    FIX,
    IMAGES,
    language_model,
    model_conflict,
)

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
FULL = ["full_attention", "full_attention"]
MEDIA = "models that take images, audio or video are not tested with a KV budget"
STATES = "linear-attention layers ({}) are not supported"
REFUSED = [
    ({"kv_lora_rank": 512}, "MLA attention is not supported with a KV budget"),
    ({"sliding_window": 4096}, "sliding-window layers (window 4096) are not supported"),
    ({"sliding_window": 4096, "max_position_embeddings": 32768}, "sliding-window layers"),
    ({"sliding_window": 4096, "use_sliding_window": True}, "sliding-window layers"),
    ({"sliding_window_size": 128}, "sliding-window layers (window 128)"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layers of type ['sliding_att"),
    ({"layer_types": ["linear_attention"]}, "layers of type ['linear_attention']"),
    ({"layers_block_type": ["mamba", "attention"]}, "layers of type ['mamba']"),
    ({"mamba_d_state": 16}, STATES.format("mamba_d_state")),
    ({"hybrid_override_pattern": "M-M*"}, STATES.format("hybrid_override_pattern")),
    ({"ssm_cfg": {"layer": "Mamba2"}}, STATES.format("ssm_cfg")),
    # The planner alone refused these.
    ({"attention_chunk_size": 8192}, "attention in chunks of 8192 is not supported"),
    ({"linear_num_value_heads": 32}, STATES.format("linear_num_value_heads")),
    ({"attn_type_list": [0, 0, 1]}, STATES.format("attn_type_list")),
    ({"model_type": "falcon_mamba"}, STATES.format("model_type")),
    # The server alone refused these.
    ({"dual_chunk_attention_config": {"chunk_size": 1}}, "dual chunk attention is not supported"),
    ({"is_encoder_decoder": True}, "encoder-decoder models are not supported with a KV budget"),
    ({"layers_block_type": ["attention"], "mamba_d_state": 16}, STATES.format("mamba_d_state")),
    ({"vision_config": {"depth": 2}}, MEDIA),
]
LFM2 = {"model_type": "lfm2", "layer_types": ["conv", "full_attention"], "conv_L_cache": 3}
#: Hybrid models; the planner counts them by itself, and says what a server does.
REFUSED_HYBRIDS = [
    (
        {"model_type": "qwen3_next", "full_attention_interval": 0},
        "which layers keep keys and values cannot be told: field full_attention_interval=0",
    ),
    (
        {**LFM2, "layer_types": ["conv", "sliding_attention"]},
        "no layer keeps keys and values: a budget bounds nothing",
    ),
    (
        {
            **LFM2,
            "num_hidden_layers": 3,
            "layer_types": [*LFM2["layer_types"], "chunked_attention"],
        },
        "layers of type ['chunked_attention'] are not supported with a KV budget",
    ),
]
TAKEN = [
    {},
    {"layer_types": FULL},
    {"kv_lora_rank": None, "attention_chunk_size": None, "mamba_d_state": 0},
    {"sliding_window": 131072, "use_sliding_window": False},
    # The server alone refused these: it did not look any further.
    {"layers_block_type": ["attention", "attention"]},
    {"sliding_window": 4096, "max_position_embeddings": 4096},
    {"sliding_window": 4096, "layer_types": FULL},
    LFM2,
    {"model_type": "qwen2_5_vl", "vision_config": {"depth": 2}},
    # The planner alone refused this: MiniMax-M2, where all of it is softmax attention.
    {"attn_type_list": [1, 1]},
]


class Arch(enum.Enum):
    MLA = 1
    MHA = 2


def server_says(monkeypatch, config, arch=Arch.MHA, is_multimodal=False, whole=None) -> str:
    """What the start of a server says of a model that Transformers has read; empty if nothing.

    `config` is of the language model, `whole` the model_type around it, if it is another one.
    """
    stub = ModuleType("sglang.srt.configs.model_config")
    stub.AttentionArch = Arch
    monkeypatch.setitem(sys.modules, "sglang.srt.configs.model_config", stub)
    text = SimpleNamespace(to_dict=lambda: config, model_type=config["model_type"])
    model = SimpleNamespace(
        hf_text_config=text,
        hf_config=SimpleNamespace(model_type=whole or config["model_type"]),
        attention_arch=arch,
        is_multimodal=is_multimodal,
        num_attention_heads=4,
        get_total_num_kv_heads=lambda: 2,
        head_dim=64,
        v_head_dim=64,
        context_len=4096,
    )
    try:
        compatibility.refuse_model(model, LongFlowConfig(kv_budget=64))
    except UnsupportedSetup as error:
        return str(error)
    return ""


def folder_of(tmp_path, config) -> str:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    return str(tmp_path)


def serve_says(folder: str, **more) -> list[str]:
    """What `longflow serve` finds wrong with a model in a folder, before it starts a server."""
    values = {"model_path": folder, "kv_budget": 64, **more}
    model, problem, _ = find_model(values)
    return [str(one) for one in ([problem] if problem else preflight.judge(values, model))]


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_what_is_refused_is_refused_by_planner_serve_and_server_alike(
    tmp_path, monkeypatch, changes, words
):
    config = {**LLAMA, **changes}
    conflict = model_conflict(config)
    assert conflict.startswith(f"model_type={config['model_type']!r}: {words}")
    folder = folder_of(tmp_path, config)
    with pytest.raises(PlanError) as error:
        load_geometry(folder)
    assert str(error.value) == f"config.json: {conflict}; choose another --model"
    assert serve_says(folder) == [f"{conflict}; {FIX}"]
    if not conflict.endswith(MEDIA):  # SGLang itself tells the server that
        assert server_says(monkeypatch, config) == f"{conflict}; {FIX}"


@pytest.mark.parametrize(("changes", "words"), REFUSED_HYBRIDS)
def test_hybrids_that_are_refused(tmp_path, changes, words):
    config = {**LLAMA, **changes}
    conflict = model_conflict(config)
    assert conflict.startswith(f"model_type={config['model_type']!r}: {words}")
    assert serve_says(folder_of(tmp_path, config)) == [f"{conflict}; {FIX}"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_mamba_cache_size": 0}, "max_mamba_cache_size=0: one request takes 3 recurrent"),
        ({"max_mamba_cache_size": 2}, "max_mamba_cache_size=2: one request takes 3 recurrent"),
        ({"max_mamba_cache_size": 3}, ""),
        ({"max_mamba_cache_size": 0, "disable_radix_cache": True}, "=0: one request takes 1 rec"),
        ({"max_mamba_cache_size": 1, "disable_radix_cache": True}, ""),
        # SGLang starts with it, and ends at the first token.
        ({"mamba_track_interval": 0}, "mamba_track_interval=0: expected 1 or more; drop --mamba"),
        ({"mamba_track_interval": 0, "disable_radix_cache": True}, ""),
        ({"mamba_track_interval": 64}, ""),
    ],
)
def test_numbers_with_which_a_server_of_states_ends(tmp_path, values, words):
    said = serve_says(folder_of(tmp_path, {**LLAMA, **LFM2}), **values)
    assert len(said) == bool(words) and all(words in one for one in said)


@pytest.mark.parametrize("asked", [{"enable_lora": True}, {"lora_paths": ["a=/adapter"]}])
def test_lora_on_qwen3_next_alone_is_refused(tmp_path, asked):
    config = {**LLAMA, "model_type": "qwen3_next", "full_attention_interval": 2}
    config |= dict(linear_num_key_heads=1, linear_num_value_heads=1, linear_key_head_dim=64)
    config |= dict(linear_value_head_dim=64, linear_conv_kernel_dim=4)
    said = serve_says(folder_of(tmp_path, config), **asked)
    assert len(said) == 1 and "LoRA on Qwen3-Next ends SGLang" in said[0]
    assert serve_says(folder_of(tmp_path, config)) == []
    assert serve_says(folder_of(tmp_path, {**LLAMA, **LFM2}), **asked) == []


def test_such_numbers_mean_nothing_to_other_models(tmp_path):
    folder = folder_of(tmp_path, LLAMA)
    assert serve_says(folder, max_mamba_cache_size=0, mamba_track_interval=0) == []


@pytest.mark.parametrize("changes", TAKEN)
def test_what_is_taken_is_taken_by_planner_serve_and_server(tmp_path, monkeypatch, changes):
    config = {**LLAMA, **changes}
    assert model_conflict(config) is None
    folder = folder_of(tmp_path, config)
    assert load_geometry(folder).layers == 2
    assert serve_says(folder) == []
    assert server_says(monkeypatch, config) == ""


@pytest.mark.sglang
@pytest.mark.parametrize("changes", [*(changes for changes, _ in REFUSED), *TAKEN])
def test_doctor_says_the_same(tmp_path, changes):
    """It reads the names of server arguments from SGLang's source."""
    config = {**LLAMA, **changes}
    words = ["--model-path", folder_of(tmp_path, config), "--kv-budget", "64"]
    checks = check_server_arguments(words)
    if conflict := model_conflict(config):
        (check,) = checks
        assert (check.status, check.detail, check.fix) == ("fail", conflict, FIX)
    else:
        assert [check.status for check in checks] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"arch": Arch.MLA}, "MLA attention is not supported with a KV budget"),
        ({"is_multimodal": True}, MEDIA),
    ],
)
def test_the_server_refuses_what_only_sglang_knows(monkeypatch, known, words):
    assert model_conflict(LLAMA) is None
    assert server_says(monkeypatch, LLAMA, **known) == f"model_type='llama': {words}; {FIX}"


def test_the_server_takes_a_text_model_that_transformers_gives_a_vision_config(monkeypatch):
    """grok-2 has model_type git, whose class makes one up."""
    assert server_says(monkeypatch, {**LLAMA, "vision_config": {"depth": 2}}) == ""


@pytest.mark.parametrize("kind", IMAGES)
def test_models_of_images_that_ran_with_a_budget_are_taken(tmp_path, monkeypatch, kind):
    text = {**LLAMA, "model_type": f"{kind}_text"}
    if kind.startswith("qwen3_5"):  # a hybrid model, which needs to be told more
        text = builtin_config("Qwen/Qwen3.8-27B")["text_config"] | {"model_type": f"{kind}_text"}
    whole = {"model_type": kind, "vision_config": {"depth": 2}, "text_config": text}
    assert model_conflict(whole) is None
    folder = folder_of(tmp_path, whole)
    assert serve_says(folder) == []
    assert load_geometry(folder).opaque_field in ("vision_config", "text_config")
    assert server_says(monkeypatch, text, is_multimodal=True, whole=kind) == ""
    # Another whole around the same language model has not been tried.
    assert MEDIA in model_conflict({**whole, "model_type": "another"})
    assert MEDIA in server_says(monkeypatch, text, is_multimodal=True, whole="another")
    assert "MLA" in model_conflict({**whole, "text_config": {**text, "kv_lora_rank": 8}})


def test_the_language_model_of_a_config_is_looked_at():
    outer = {"model_type": "llava", "text_config": {**LLAMA, "kv_lora_rank": 8}}
    assert model_conflict(outer).startswith("model_type='llama': MLA")
    assert language_model({**outer, "vision_config": {}}) == outer["text_config"]


def test_a_server_that_is_told_to_take_text_alone_is_not_refused_for_its_encoder(tmp_path):
    folder = folder_of(tmp_path, {"vision_config": {"depth": 2}, "text_config": LLAMA})
    (line,) = serve_says(folder)
    assert MEDIA in line
    assert serve_says(folder, enable_multimodal=False) == []


def test_what_only_sglang_can_read_is_left_to_it(tmp_path):
    assert serve_says(folder_of(tmp_path, {**LLAMA, "layer_types": 5})) == []
    folder = folder_of(tmp_path, {**LLAMA, "kv_lora_rank": 8})
    assert len(serve_says(folder)) == 1
    assert serve_says(folder, json_model_override_args='{"a": 1}') == []


def test_no_budget_no_refusal(tmp_path):
    folder = folder_of(tmp_path, {**LLAMA, "kv_lora_rank": 8})
    assert serve_says(folder, kv_budget=None) == []


@pytest.mark.sglang
def test_doctor_warns_of_a_kind_that_was_never_run(tmp_path):
    config = {**LLAMA, "model_type": "phi3"}
    words = ["--model-path", folder_of(tmp_path, config), "--kv-budget", "64"]
    go_together, check = check_server_arguments(words)
    assert (go_together.status, check.status) == ("ok", "warn")
    assert check.detail.endswith("compare some answers with full KV first")
