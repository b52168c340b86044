# SPDX-License-Identifier: Apache-2.0
"""Layers of hybrid models: the real ones by hand, the tiny ones as Transformers and SGLang say."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

import hybrid_models
from sglang_longflow.settings.hybrid_models import hybrid_layers, is_hybrid

QWEN = {
    "model_type": "qwen3_5_text",
    "num_hidden_layers": 8,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}
NEMOTRON = {
    "model_type": "nemotron_h",
    "num_hidden_layers": 6,
    "hybrid_override_pattern": "ME*-M*",
    "mamba_num_heads": 64,
    "mamba_head_dim": 64,
    "ssm_state_size": 128,
    "n_groups": 8,
    "conv_kernel": 4,
}


@pytest.mark.parametrize(
    ("changes", "attention"),
    [
        ({}, (3, 7)),
        ({"full_attention_interval": 2}, (1, 3, 5, 7)),
        # SGLang reads the interval alone, where both are there.
        ({"layer_types": ["linear_attention"] * 8, "full_attention_interval": 4}, (3, 7)),
        ({"layer_types": ["full_attention"] + 7 * ["linear_attention"]}, (0,)),
    ],
)
def test_every_fourth_layer_attends(changes, attention):
    layers = hybrid_layers({**QWEN, **changes})
    assert layers.attention == attention
    assert set(layers.recurrent) == set(range(8)) - set(attention)


def test_layers_may_be_of_neither_kind():
    layers = hybrid_layers(NEMOTRON)
    assert (layers.attention, layers.recurrent) == ((2, 5), (0, 4))
    listed = {**NEMOTRON, "hybrid_override_pattern": None}
    names = ["mamba", "moe", "attention", "mlp", "linear_attention", "full_attention"]
    assert hybrid_layers({**listed, "layers_block_type": names}).attention == (2, 5)


def test_layers_of_both_kinds():
    falcon = {
        "model_type": "falcon_h1", "num_hidden_layers": 3, "mamba_d_ssm": 256, "mamba_n_heads": 8,
        "mamba_n_groups": 1, "mamba_d_state": 32, "mamba_d_conv": 4,
    }  # fmt: skip
    layers = hybrid_layers(falcon)
    assert layers.attention == layers.recurrent == (0, 1, 2)
    assert layers.state_bytes() == 3 * ((256 + 64) * 3 * 2 + 256 * 32 * 4)


def test_states_in_bf16_are_half_as_large():
    whole, half = (hybrid_layers({**QWEN, "mamba_ssm_dtype": d}) for d in ("float32", "bfloat16"))
    assert whole.state_bytes() == 6 * (10240 * 6 + 48 * 128 * 128 * 4)
    assert half.state_bytes() == 6 * (10240 * 6 + 48 * 128 * 128 * 2)
    assert whole.slots_per_request == 5


def test_other_models_have_none():
    assert hybrid_layers({"model_type": "qwen3"}) is None and not is_hybrid({})
    assert hybrid_layers({"model_type": "mamba2", "num_hidden_layers": 2}) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**NEMOTRON, "hybrid_override_pattern": "MX"}, r"has layers of \['X'\]"),
        ({**NEMOTRON, "hybrid_override_pattern": None}, "field layer_types is missing"),
        ({**NEMOTRON, "mamba_num_heads": "64"}, "field mamba_num_heads='64' must be a positive"),
        ({**QWEN, "num_hidden_layers": True}, "field num_hidden_layers=True must be a positive"),
        (
            {**NEMOTRON, "hybrid_override_pattern": None, "layers_block_type": ["mamba"]},
            "field layer_types has 1 layers, num_hidden_layers=6",
        ),
    ],
)
def test_fields_that_make_no_sense(config, message):
    with pytest.raises(ValueError, match=message):
        hybrid_layers(config)


@pytest.mark.sglang
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("kind", hybrid_models.KINDS)
def test_the_tiny_models_as_sglang_and_transformers_have_them(kind, tp, tmp_path, monkeypatch):
    """Layers and bytes of a slot by SGLang's own config, parameters by Transformers' model."""
    from sglang.srt import configs
    from sglang.srt.utils.hf_transformers_utils import get_config

    from sglang_longflow.planner.hybrid import hybrid_parameters

    folder = hybrid_models.build_hybrid_model(kind, tmp_path)
    text = json.loads((folder / "config.json").read_text())
    layers = hybrid_layers(text)
    count = sum(parameter.numel() for parameter in hybrid_models.make_hybrid(kind).parameters())
    assert hybrid_parameters(text, layers) == count
    for name in ("falcon_h1", "granitemoehybrid", "nemotron_h", "lfm2", "lfm2_moe"):
        module = getattr(configs, name)
        monkeypatch.setattr(module, "get_parallel", lambda: SimpleNamespace(attn_tp_size=tp))
    monkeypatch.setattr(configs.qwen3_next, "linear_attn_tp_size", lambda: tp)
    monkeypatch.setattr(configs.qwen3_next, "_is_cpu", False)  # there it pads heads
    theirs = get_config(str(folder), trust_remote_code=False)
    assert tuple(theirs.full_attention_layer_ids) == layers.attention
    assert layers.attention == hybrid_models.FULL_LAYERS[kind]
    params = theirs.mamba2_cache_params
    assert tuple(params.layers) == layers.recurrent
    assert params.mamba_cache_per_req == layers.state_bytes(tp)
