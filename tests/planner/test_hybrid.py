# SPDX-License-Identifier: Apache-2.0
"""Plans for models with recurrent layers, against numbers worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sglang_longflow.cli.plan import render
from sglang_longflow.deployment.sizing import make_sizing
from sglang_longflow.planner.api import plan
from sglang_longflow.planner.geometry import (
    PlanError,
    geometry_from,
    kv_bytes_per_token,
    load_geometry,
    parameter_count,
    state_bytes_per_request,
)
from sglang_longflow.planner.gpus import GIB, GPUS
from sglang_longflow.planner.plan import make_plan
from sglang_longflow.planner.step_time import StepTime
from sglang_longflow.settings.builtin_models import builtin_config, builtin_name, hybrid_names
from sglang_longflow.settings.refused_models import model_conflict

#: Published: billions of parameters of the text model, layers with keys and values, of all.
PUBLISHED = {
    "Qwen/Qwen3-Next-80B-A3B-Thinking": (79.67, 12, 48),  # 81.3 with the layer of further tokens
    "Qwen/Qwen3.6-35B-A3B": (34.66, 10, 40),
    "Qwen/Qwen3.8-27B": (26.90, 16, 64),
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (31.58, 6, 52),
    "tiiuae/Falcon-H1-7B-Instruct": (7.59, 44, 44),
    "ibm-granite/granite-4.0-h-small": (32.21, 4, 40),
    "LiquidAI/LFM2-8B-A1B": (8.34, 6, 24),
}
NEXT = "Qwen/Qwen3-Next-80B-A3B-Thinking"
#: By hand: 36 layers, bf16 of (32 + 2 x 16) heads x 128 over 3 tokens, float32 of 32 x 128 x 128.
NEXT_STATE = 36 * (8192 * 3 * 2 + 32 * 128 * 128 * 4)
#: 18 layers, bf16 of 2048 channels over 2 tokens.
LFM2_STATE = 18 * 2048 * 2 * 2


@pytest.mark.parametrize("name", PUBLISHED)
def test_builtin_shapes(name):
    billions, attention, layers = PUBLISHED[name]
    geom = load_geometry(name)
    assert round(parameter_count(geom) / 1e9, 2) == billions
    assert (geom.kv_layers, geom.layers) == (attention, layers)
    assert geom.refused == (model_conflict(builtin_config(name)) or "")
    per_token = attention * 2 * geom.kv_heads * geom.head_dim * 2
    assert kv_bytes_per_token(geom) == per_token
    assert state_bytes_per_request(geom) > 0


def test_every_builtin_hybrid_has_a_shape():
    assert set(PUBLISHED) <= set(hybrid_names())
    for name in hybrid_names():
        assert load_geometry(name).hybrid is not None
        assert builtin_name(name.lower()) == builtin_name(name.split("/")[1]) == name


def test_bytes_of_states():
    assert state_bytes_per_request(load_geometry(NEXT)) == NEXT_STATE == 77_266_944
    assert state_bytes_per_request(load_geometry(NEXT), 2) == NEXT_STATE // 2
    assert state_bytes_per_request(load_geometry("LFM2-8B-A1B")) == LFM2_STATE
    assert state_bytes_per_request(load_geometry("Qwen/Qwen3-8B")) == 0
    # One group of keys and queries is on each of two ranks.
    falcon = load_geometry("Falcon-H1-7B-Instruct")
    assert state_bytes_per_request(falcon) == 44 * ((3072 + 512) * 6 + 24 * 128 * 256 * 4)
    assert state_bytes_per_request(falcon, 2) == 44 * ((3072 + 1024) // 2 * 6 + 12 * 128 * 256 * 4)
    with pytest.raises(PlanError, match="--tp 5: 5 ranks cannot share 32 heads of a recurrent"):
        state_bytes_per_request(load_geometry(NEXT), 5)


def plan_of(name=NEXT, free_gib=40.0, **asked):
    """A plan with so much memory for states and KV together, in GiB."""
    geom = load_geometry(name)
    memory = int((free_gib * GIB + 2 * parameter_count(geom)) * 2)
    asked = {"prompt_tokens": 500, "output_tokens": 20_000, **asked}
    return make_plan(geom, memory_bytes=memory, mem_fraction_static=0.5, **asked)


def test_memory_is_shared_out_as_sglang_does():
    found = plan_of(budget_tokens=4096)
    # 0.9 of 1.9 parts are states, one slot of them is padding; a request takes five.
    slots = int((40 * GIB * 0.9 / 1.9 - NEXT_STATE) // NEXT_STATE)
    assert found.state_bytes_per_request == NEXT_STATE
    assert found.state_slots == slots == 262
    assert found.state_rows == 52
    assert found.pool_tokens == int((40 * GIB - (slots + 1) * NEXT_STATE) // 24_576)


def test_states_and_not_kv_decide():
    """Both full KV and the budget run as many as have room for their states."""
    found = plan_of(budget_tokens=4096)
    assert found.pool_tokens // 4096 > 52 and found.pool_tokens // 10_500 > 52
    assert found.rows_full == found.rows_budget == 52 and not found.helps
    assert found.max_running_requests is None
    assert "recurrent states have room for 52 requests at once" in found.verdict
    shares = "recurrent states are 79% of what a request takes at this budget (368 of 464 MiB"
    assert any(note.startswith(shares) for note in found.notes)


def test_the_advice_is_what_it_says():
    found = plan_of(budget_tokens=4096)
    (note,) = [note for note in found.notes if note.startswith("--max-mamba-cache-size")]
    slots, rows = int(note.split()[1]), int(note.split("budget: ")[1].split()[0])
    advised = plan_of(budget_tokens=4096, max_mamba_cache_size=slots)
    assert (advised.state_slots, advised.rows_budget) == (slots, rows)
    assert rows == slots // 5 > found.rows_budget
    assert advised.helps and advised.max_running_requests == rows
    assert advised.max_mamba_cache_size == slots
    assert not [note for note in advised.notes if note.startswith("--max-mamba-cache-size")]
    # One request more has room for its states, and not for its KV.
    more = plan_of(budget_tokens=4096, max_mamba_cache_size=slots + 5)
    assert more.state_rows == rows + 1 and more.rows_budget <= rows


def test_small_states_leave_the_pool_to_decide():
    found = plan_of("LFM2-8B-A1B", budget_tokens=2048)
    slots = int((40 * GIB * 0.9 / 1.9 - LFM2_STATE) // LFM2_STATE)
    assert found.state_rows == slots // 3  # it goes without overlap scheduling
    assert found.helps and found.rows_budget == found.pool_tokens // 2048


def test_users_beyond_the_states():
    assert plan_of(users=50).budget_tokens is None
    with pytest.raises(PlanError, match=r"--users 60 exceeds 52, all that 262 slots .*-size 300$"):
        plan_of(users=60)
    assert plan_of(users=60, max_mamba_cache_size=300).rows_full == 60


def test_slots_that_make_no_sense():
    with pytest.raises(PlanError, match="--max-mamba-cache-size 4 is below 5"):
        plan_of(budget_tokens=4096, max_mamba_cache_size=4)
    with pytest.raises(
        PlanError, match=r"is too small for .* 40\.01 GiB of recurrent states and a"
    ):
        plan_of(budget_tokens=4096, max_mamba_cache_size=555)
    with pytest.raises(PlanError, match="Qwen3-8B has no recurrent states"):
        plan(model="Qwen/Qwen3-8B", gpu="h100", budget=4096, max_mamba_cache_size=100)


def test_too_little_memory_names_what_is_enough():
    with pytest.raises(PlanError, match=r"recurrent states and a KV pool .*fix: --tp 4"):
        plan(model=NEXT, gpu="h100", budget=4096)


def test_a_pool_that_is_there_already():
    geom = load_geometry(NEXT)
    found = make_plan(geom, pool_tokens=100_000, budget_tokens=4096)
    assert found.state_slots is None and found.rows_budget == 24
    assert "the pool of recurrent states is not counted" in found.notes[0]
    capped = make_plan(geom, pool_tokens=100_000, budget_tokens=4096, max_mamba_cache_size=50)
    assert capped.rows_budget == 10


def test_a_step_reads_and_writes_states():
    step = StepTime(None, 1000.0, 2.0, 0, 1, state_bytes=300.0)
    assert step.seconds(3, 100) == 1000 + 3 * 100 * 2 + 3 * 2 * 300
    slow = make_plan(load_geometry(NEXT), gpu=GPUS["H200-141G"], tp=2, budget_tokens=4096)
    assert slow.budget_tokens_per_s and slow.throughput_gain


def test_what_is_printed():
    lines = dict(
        line.split(None, 1) if not line.startswith("state") else (line[:18].strip(), line[18:])
        for line in render(plan_of(budget_tokens=4096)).splitlines()
    )
    assert lines["state per slot"] == "77,266,944 bytes per GPU"
    assert lines["state pool"] == "262 slots, for 52 requests"
    assert "state" not in render(plan(model="Qwen/Qwen3-8B", gpu="h100", budget=4096))


def test_a_model_that_a_server_refuses():
    """It is planned for, with a note; there is no deployment of it."""
    geom = replace(load_geometry(NEXT), refused="model_type='x': not yet")
    found = make_plan(geom, pool_tokens=100_000, budget_tokens=4096, max_mamba_cache_size=300)
    assert found.refused and found.helps
    assert "longflow serve refuses this model: model_type='x': not yet" in found.notes
    taken = make_plan(replace(geom, refused=""), pool_tokens=100_000, budget_tokens=4096)
    assert not any("refuses" in note for note in taken.notes)
    with pytest.raises(PlanError, match="longflow serve refuses Qwen/Qwen3-Next"):
        make_sizing(found, model_path=NEXT, replicas_min=1, replicas_max=1)


def test_a_deployment_has_no_more_rows_than_states():
    geom = replace(load_geometry(NEXT), refused="")
    found = make_plan(geom, pool_tokens=100_000, budget_tokens=4096, max_mamba_cache_size=50)
    sizing = make_sizing(found, model_path=NEXT, replicas_min=1, replicas_max=1)
    assert sizing.rows == 10
    assert sizing.server_config()["max-mamba-cache-size"] == 50


def test_fields_that_make_no_sense(tmp_path):
    config = builtin_config(NEXT)
    for changes, message in (
        ({"linear_num_value_heads": None}, "field linear_num_value_heads is missing"),
        ({"linear_conv_kernel_dim": 0}, "field linear_conv_kernel_dim=0 must be a positive int"),
        ({"mamba_ssm_dtype": "fp8"}, "field mamba_ssm_dtype='fp8' must be one of"),
        ({"num_key_value_heads": 3}, "field num_key_value_heads=3 must divide heads=16"),
        ({"full_attention_interval": 100}, "choose another --model"),  # nothing attends
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(PlanError, match=message):
            load_geometry(str(tmp_path))


def test_attention_alone_with_the_fields_of_the_other_kind():
    """Granite 4 Micro has no Mamba layer, and SGLang reads those fields: refused as before."""
    config = {
        **builtin_config("ibm-granite/granite-4.0-h-small"),
        "layer_types": ["attention"] * 40,
    }
    with pytest.raises(PlanError, match=r"model_type='granitemoehybrid': linear-attention layers"):
        geometry_from(config, "granite", None)
