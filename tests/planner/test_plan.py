# SPDX-License-Identifier: Apache-2.0
"""`longflow plan` against numbers worked out by hand."""

import argparse
import json
import subprocess
import sys

import pytest

from sglang_longflow.cli.plan import add_arguments, render, run
from sglang_longflow.planner.api import plan
from sglang_longflow.planner.geometry import (
    PlanError,
    geometry_from,
    kv_bytes_per_token,
    load_geometry,
    parameter_count,
)
from sglang_longflow.planner.gpus import GIB, GPUS
from sglang_longflow.planner.plan import (
    budget_for_users,
    make_plan,
)
from sglang_longflow.planner.weights import weights_bytes
from sglang_longflow.settings.builtin_models import builtin_config
from sglang_longflow.settings.refused_models import model_conflict

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "tie_word_embeddings": False,
}
# By hand: embeddings 2*100*64, a layer q+o 2*64*64, k+v 2*64*32, MLP 3*64*128, norms 2*64; 64 last.
LLAMA_PARAMETERS = 12_800 + 2 * (8_192 + 4_096 + 24_576 + 128) + 64


def write(folder, **changes):
    config = {key: value for key, value in {**LLAMA, **changes}.items() if value != "drop"}
    (folder / "config.json").write_text(json.dumps(config))
    return load_geometry(str(folder))


def write_safetensors(path, **tensors):
    """Header and zeros; a tensor is (dtype, bytes)."""
    header, begin = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, size) in tensors.items():
        header[name.replace("__", ".")] = {
            "dtype": dtype,
            "shape": [size],
            "data_offsets": [begin, begin + size],
        }
        begin += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(begin))


def plan_with_pool(pool_tokens, model="Qwen/Qwen3-1.7B", gpu=None, tp=1, **asked):
    """A plan whose KV pool has exactly so many tokens: half the memory is weights and pool."""
    geom = load_geometry(model)
    static = weights_bytes(geom) // tp + pool_tokens * kv_bytes_per_token(geom, tp)
    plan = make_plan(
        geom, gpu=gpu, memory_bytes=2 * static, mem_fraction_static=0.5, tp=tp, **asked
    )
    assert plan.pool_tokens == pool_tokens
    return plan


def cli(capsys, *flags):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    code = run(parser.parse_args([str(flag) for flag in flags]))
    out, err = capsys.readouterr()
    return code, out, err


# --- geometry ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, parameters, kv_bytes",
    [  # parameter counts as published with the checkpoints; KV = layers * 2 * kv_heads * 128 * 2
        ("Qwen/Qwen3-0.6B", 596_049_920, 114_688),
        ("Qwen/Qwen3-1.7B", 1_720_574_976, 114_688),
        ("Qwen/Qwen3-4B", 4_022_468_096, 147_456),
        ("Qwen/Qwen3-8B", 8_190_735_360, 147_456),
        ("Qwen/Qwen3-32B", 32_762_123_264, 262_144),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512, 57_344),
        ("Qwen/Qwen2.5-Math-7B", 7_615_616_512, 57_344),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248, 131_072),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 8_030_261_248, 131_072),
        ("meta-llama/Llama-3.3-70B-Instruct", 70_553_706_496, 327_680),
    ],
)
def test_builtin_geometries(model, parameters, kv_bytes):
    geom = load_geometry(model)
    assert parameter_count(geom) == parameters
    assert kv_bytes_per_token(geom) == kv_bytes
    assert weights_bytes(geom, "float32") == 4 * parameters
    assert load_geometry(model.split("/")[1].upper()) == geom


def test_llama_style(tmp_path):
    geom = write(tmp_path)
    assert geom.head_dim == 16  # 64 / 4, not in the file
    assert parameter_count(geom) == LLAMA_PARAMETERS
    assert weights_bytes(geom) == 2 * LLAMA_PARAMETERS
    assert kv_bytes_per_token(geom) == 2 * 2 * 2 * 16 * 2
    assert load_geometry(str(tmp_path / "config.json")) == geom


@pytest.mark.parametrize(
    "changes, difference",
    [
        ({"tie_word_embeddings": True}, -6_400),
        ({"attention_bias": True}, 2 * (64 + 2 * 32 + 64)),
        ({"mlp_bias": True}, 2 * (2 * 128 + 64)),
        ({"model_type": "qwen2"}, 2 * (64 + 2 * 32)),
        ({"model_type": "qwen2", "attention_bias": True}, 2 * (64 + 2 * 32)),
        ({"model_type": "qwen3"}, 2 * 2 * 16),
        ({"head_dim": 32}, 2 * (8_192 + 4_096)),
        ({"model_type": "mistral", "head_dim": None, "sliding_window": None}, 0),
        ({"num_key_value_heads": "drop"}, 2 * 2 * 64 * 32),
        ({"tie_word_embeddings": "drop"}, 0),
        ({"model_type": "gemma", "tie_word_embeddings": "drop"}, -6_400),
        # 8 experts of 3*64*128 and a router row each, in place of one MLP
        ({"num_local_experts": 8}, 2 * (7 * 24_576 + 8 * 64)),
        ({"num_experts": 4, "moe_intermediate_size": 32}, 2 * (4 * 6_144 + 4 * 64 - 24_576)),
        (  # only the second layer has experts
            {"num_experts": 4, "moe_intermediate_size": 32, "mlp_only_layers": [0]},
            4 * 6_144 + 4 * 64 - 24_576,
        ),
        (
            {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48},
            2 * (4 * 6_144 + 4 * 64 + 3 * 64 * 48 - 24_576),
        ),
        (
            {"n_routed_experts": 4, "moe_intermediate_size": 32, "n_shared_experts": 2}
            | {"first_k_dense_replace": 1},
            6 * 6_144 + 4 * 64 - 24_576,
        ),
    ],
)
def test_parameters_of_config_variants(tmp_path, changes, difference):
    assert parameter_count(write(tmp_path, **changes)) == LLAMA_PARAMETERS + difference


def test_published_mixture_of_experts_counts(tmp_path):
    qwen = write(
        tmp_path, model_type="qwen3_moe", num_hidden_layers=48, hidden_size=2048, head_dim=128,
        intermediate_size=6144, moe_intermediate_size=768, num_experts=128, vocab_size=151936,
        num_attention_heads=32, num_key_value_heads=4, decoder_sparse_step=1, mlp_only_layers=[],
    )  # fmt: skip
    assert parameter_count(qwen) == 30_532_122_624
    mixtral = write(
        tmp_path, model_type="mixtral", num_hidden_layers=32, hidden_size=4096, vocab_size=32000,
        intermediate_size=14336, num_local_experts=8, num_attention_heads=32, num_key_value_heads=8,
    )  # fmt: skip
    assert parameter_count(mixtral) == 46_702_792_704


def test_weights_from_safetensors(tmp_path):
    geom = write(tmp_path, tie_word_embeddings=True)
    write_safetensors(
        tmp_path / "model.safetensors",
        a=("BF16", 1000),
        b=("F32", 400),  # loaded at 2 bytes: 200
        packed=("U8", 30),
        lm_head__weight=("BF16", 600),  # tied: not loaded
    )
    write_safetensors(tmp_path / "consolidated.safetensors", again=("BF16", 5000))
    assert weights_bytes(geom) == 1230
    assert weights_bytes(geom, "float32") == 2430
    plan = make_plan(geom, memory_bytes=GIB, budget_tokens=100)
    assert (plan.weights_bytes, plan.weights_source) == (1230, "safetensors files")


def test_weights_from_indexed_shards(tmp_path):
    geom = write(tmp_path)
    index = {"weight_map": {"x": "part-1.safetensors", "y": "part-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    write_safetensors(tmp_path / "part-1.safetensors", x=("BF16", 100))
    assert weights_bytes(geom) == 2 * LLAMA_PARAMETERS  # a shard is missing: from the geometry
    write_safetensors(tmp_path / "part-2.safetensors", y=("BF16", 20))
    write_safetensors(tmp_path / "model-old.safetensors", z=("BF16", 7000))
    assert weights_bytes(geom) == 120


def test_weights_of_quantized_models(tmp_path):
    geom = write(tmp_path, quantization_config={"quant_method": "fp8"})
    with pytest.raises(PlanError, match=r"quantization_config.*--weights-gb"):
        weights_bytes(geom)
    write_safetensors(tmp_path / "model.safetensors", a=("F8_E4M3", 50), scale=("F32", 40))
    assert weights_bytes(geom) == 90


def test_git_lfs_pointer_is_an_error(tmp_path):
    geom = write(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(PlanError, match=r"git-lfs.*--weights-gb"):
        weights_bytes(geom)


def test_text_config_is_read(tmp_path):
    outer = {"model_type": "llava", "text_config": LLAMA}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    geom = load_geometry(str(tmp_path))
    assert (geom.layers, geom.kv_heads) == (2, 2)
    with pytest.raises(PlanError, match=r"text_config.*--weights-gb"):
        weights_bytes(geom)


@pytest.mark.parametrize(
    "changes",
    [
        {"kv_lora_rank": 512},
        {"sliding_window": 4096, "max_position_embeddings": 32768},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"mamba_d_state": 16},
    ],
)
def test_refused_models(tmp_path, capsys, changes):
    """`settings.refused_models` has the whole list; here it is one line of the command."""
    with pytest.raises(PlanError):
        write(tmp_path, **changes)
    code, out, err = cli(capsys, "--model", tmp_path, "--gpu", "L4-24G", "--budget", 100)
    assert (code, out) == (2, "")
    assert err.startswith("longflow plan: error: ") and err.count("\n") == 1
    assert f"config.json: {model_conflict({**LLAMA, **changes})}" in err


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_hidden_layers": "drop"}, "field num_hidden_layers is missing"),
        ({"hidden_size": 0}, "field hidden_size=0 must be a positive integer"),
        ({"vocab_size": True}, "field vocab_size=True must be"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 must divide heads=4"),
        ({"num_attention_heads": 6, "num_key_value_heads": 2}, "head_dim is missing"),
        ({"layer_types": 5}, "is not a model config"),
    ],
)
def test_bad_configs(tmp_path, changes, message):
    with pytest.raises(PlanError, match=message):
        write(tmp_path, **changes)


def test_unreadable_models(tmp_path):
    with pytest.raises(PlanError, match=r"No such file"):
        load_geometry(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(PlanError, match="is not a model config"):
        load_geometry(str(tmp_path))
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(PlanError, match="no JSON object"):
        load_geometry(str(tmp_path))
    with pytest.raises(PlanError, match=r"HF_HUB_OFFLINE is set; hf download"):
        load_geometry("gpt2")
    with pytest.raises(PlanError, match=r"neither a folder .*; did you mean Qwen/Qwen3-8B"):
        load_geometry("./qwen3-8b")


def test_tensor_parallel_kv_bytes():
    llama = load_geometry("llama-3.3-70b-instruct")  # 64 heads, 8 KV heads
    one = kv_bytes_per_token(llama)
    assert [one // kv_bytes_per_token(llama, tp) for tp in (2, 4, 8, 16)] == [2, 4, 8, 8]
    assert kv_bytes_per_token(llama, 4, "fp8_e4m3") == one // 8
    assert kv_bytes_per_token(llama, dtype="float32") == 2 * one
    for tp, what in ((0, "at least 1"), (3, "64 attention heads"), (128, "64 attention heads")):
        with pytest.raises(PlanError, match=what):
            kv_bytes_per_token(llama, tp)


def test_tp_that_fits_the_kv_heads_neither_way(tmp_path):
    geom = write(tmp_path, num_attention_heads=12, num_key_value_heads=6, head_dim=16)
    with pytest.raises(PlanError, match=r"--tp 4 must divide or be a multiple of the 6 KV heads"):
        kv_bytes_per_token(geom, 4)


# --- the plan ---------------------------------------------------------------------------------


@pytest.mark.parametrize("budget, rows", [(3200, 90), (1600, 181)])
def test_rows_in_a_pool_of_290_000(budget, rows):
    plan = plan_with_pool(290_000, budget_tokens=budget, prompt_tokens=200, output_tokens=16_000)
    assert plan.kv_bytes_per_token == 114_688
    assert (plan.rows_budget, plan.max_running_requests) == (rows, rows)
    assert (plan.rows_full_mean, plan.rows_full_final) == (35, 17)  # 290000 / 8200, / 16200
    assert plan.concurrency_gain == rows / 35
    assert plan.break_even_output_tokens == 2 * (budget - 200)
    assert plan.helps and plan.verdict.startswith("helps: ")


def test_pool_from_memory():
    geom = load_geometry("qwen3-1.7b")
    plan = make_plan(geom, memory_bytes=24 * GIB, mem_fraction_static=0.75, budget_tokens=3200)
    # 18 GiB - 3,441,149,952 bytes of weights, over 114,688
    assert plan.pool_tokens == (19_327_352_832 - 3_441_149_952) // 114_688 == 138_516
    two = make_plan(geom, memory_bytes=24 * GIB, mem_fraction_static=0.75, budget_tokens=99, tp=2)
    assert two.pool_tokens == (19_327_352_832 - 1_720_574_976) // 57_344 == 307_037


def test_step_time_model():
    plan = plan_with_pool(
        290_000, gpu=GPUS["H100-80G"], budget_tokens=3200, prompt_tokens=200, output_tokens=16_000
    )
    weights, kv, bandwidth = 3_441_149_952, 114_688, 0.87 * 3.35e12
    token = 2 * 1_720_574_976 / (0.5 * 989e12)  # seconds of matrix products
    gaps = 28 * 39e-6
    # Rows rise from 200 to 3200 over 3000 steps, then stay for 13000.
    mean = (3000 * 1700 + 13000 * 3200) / 16000
    assert plan.budget_mean_tokens == mean
    prefill = 200 * token / 16_000  # a token's share of its request's prompt
    full = 1 / (((weights + 35 * 8200 * kv) / bandwidth + 35 * token + gaps) / 35 + prefill)
    budget = 1 / (((weights + 90 * mean * kv) / bandwidth + 90 * token + gaps) / 90 + prefill)
    assert plan.full_tokens_per_s == pytest.approx(full)
    assert plan.budget_tokens_per_s == pytest.approx(budget)
    assert plan.throughput_gain == pytest.approx(budget / full)


def test_gain_without_a_gpu_counts_bytes():
    asked = {"budget_tokens": 3200, "prompt_tokens": 200, "output_tokens": 16_000}
    plain, named = (plan_with_pool(290_000, gpu=g, **asked) for g in (None, GPUS["L4-24G"]))
    assert plain.budget_tokens_per_s is None and named.budget_tokens_per_s is not None
    weights, kv, mean = 3_441_149_952, 114_688, plain.budget_mean_tokens
    rate_full, rate = 35 / (weights + 35 * 8200 * kv), 90 / (weights + 90 * mean * kv)
    assert plain.throughput_gain == pytest.approx(rate / rate_full)


def test_a_cap_on_the_pool():
    geom = load_geometry("qwen3-1.7b")
    asked = dict(gpu=GPUS["H100-80G"], budget_tokens=3200)
    assert make_plan(geom, max_total_tokens=290_000, **asked).pool_tokens == 290_000
    assert make_plan(geom, max_total_tokens=10**9, **asked) == make_plan(geom, **asked)


def test_tensor_parallel_plan_uses_shares():
    plan = plan_with_pool(100_000, "qwen3-8b", tp=4, budget_tokens=1000, gpu=GPUS["A100-40G"])
    assert plan.kv_bytes_per_token == 147_456 // 4
    mean = (488 * (512 + 244) + (16_384 - 488) * 1000) / 16_384
    token = 2 * 8_190_735_360 / 4 / (0.5 * 312e12)
    moved = (16_381_470_720 / 4 + 100 * mean * 36_864) / (0.87 * 1.555e12)
    step = moved + 100 * token + 36 * 39e-6
    assert plan.budget_tokens_per_s == pytest.approx(1 / (step / 100 + 512 * token / 16_384))


def test_no_help_when_rows_never_reach_the_budget():
    asked = {"budget_tokens": 2000, "prompt_tokens": 500}
    plan = plan_with_pool(100_000, output_tokens=1500, **asked)
    assert not plan.helps and "2,000 tokens never exceed the budget" in plan.verdict
    assert plan.concurrency_gain == plan.throughput_gain == 1.0
    assert plan.max_running_requests is None
    longer = plan_with_pool(100_000, output_tokens=1501, **asked)
    assert "never exceed" not in longer.verdict


def test_no_help_below_break_even():
    asked = {"budget_tokens": 2000, "prompt_tokens": 500}
    at = plan_with_pool(1_000_000, output_tokens=3000, **asked)  # 500 + 3000 / 2 = 2000
    assert (at.break_even_output_tokens, at.rows_full, at.rows_budget) == (3000, 500, 500)
    assert not at.helps and "break-even of 3,000" in at.verdict
    assert at.verdict.startswith("faster, not more: about 1.") and "read less KV" in at.verdict
    above = plan_with_pool(1_000_000, output_tokens=3100, **asked)
    assert above.helps and above.rows_full == 487


def test_no_help_when_all_users_fit():
    asked = {"budget_tokens": 2000, "prompt_tokens": 500, "output_tokens": 15_000}
    plan = plan_with_pool(80_000, users=10, **asked)  # 80000 / 8000 = 10
    assert not plan.helps and "all 10 users run at once with full KV already" in plan.verdict
    assert (plan.rows_full, plan.rows_budget, plan.concurrency_gain) == (10, 10, 1.0)
    more = plan_with_pool(80_000, users=11, **asked)
    assert more.helps and (more.rows_full, more.rows_budget) == (10, 11)


def test_no_help_when_the_budget_exceeds_the_pool():
    plan = plan_with_pool(10_000, budget_tokens=10_001, output_tokens=20_000)
    assert not plan.helps and "10,001 tokens exceeds the pool of 10,000" in plan.verdict
    assert plan.max_running_requests is None
    assert plan_with_pool(10_000, budget_tokens=10_000, output_tokens=20_000).helps


def test_no_help_when_one_more_request_does_not_fit():
    plan = plan_with_pool(20_000, budget_tokens=8500, prompt_tokens=500, output_tokens=17_000)
    assert (plan.rows_full, plan.rows_budget) == (2, 2)
    assert not plan.helps and "one more request" in plan.verdict


def test_full_kv_that_cannot_finish_one_request():
    plan = plan_with_pool(10_000, budget_tokens=2000, prompt_tokens=500, output_tokens=15_000)
    assert plan.rows_full_mean == 1 and plan.rows_full == 0  # 8000 fit, the final 15500 do not
    assert plan.helps and "cannot finish" in plan.verdict
    assert plan.concurrency_gain is None and plan.rows_budget == 5
    assert "none can finish" in render(plan)


def test_long_prompts_are_cut():
    plan = plan_with_pool(100_000, budget_tokens=1000, prompt_tokens=1000, output_tokens=5000)
    assert plan.budget_mean_tokens == 1000 and plan.break_even_output_tokens == 0
    assert any("cut to 999" in note for note in plan.notes)
    short = plan_with_pool(100_000, budget_tokens=1000, prompt_tokens=999, output_tokens=5000)
    assert short.notes == ()


def test_compute_bound_note():
    many = plan_with_pool(257_000, budget_tokens=1000)
    assert any("limited by compute" in note for note in many.notes)
    assert plan_with_pool(256_000, budget_tokens=1000).notes == ()
    assert plan_with_pool(257_000, gpu=GPUS["H100-80G"], budget_tokens=1000).notes == ()


# --- the inverse ------------------------------------------------------------------------------


def test_budget_for_users():
    # Mean length 8200: 35 run with full KV.
    assert budget_for_users(290_000, 35, 200, 16_000) is None
    assert budget_for_users(290_000, 36, 200, 16_000) == 8055
    assert budget_for_users(290_000, 90, 200, 16_000) == 3222
    assert budget_for_users(290_000, 7631, 200, 16_000) == 38
    with pytest.raises(PlanError, match=r"--users 7632 exceeds 7631, .*pool of 290000 .*38"):
        budget_for_users(290_000, 7632, 200, 16_000)
    assert budget_for_users(10_000, 1, 500, 15_000) == 10_000  # full KV never finishes


@pytest.mark.parametrize("users", [36, 90, 181, 1000, 7631])
def test_the_budget_found_is_the_largest_that_runs_all_users(users):
    asked = {"prompt_tokens": 200, "output_tokens": 16_000}
    plan = plan_with_pool(290_000, users=users, **asked)
    assert plan.helps and plan.rows_budget == users
    larger = plan_with_pool(290_000, budget_tokens=plan.budget_tokens + 1, **asked)
    assert larger.rows_budget < users


def test_inverse_when_full_kv_is_enough():
    plan = plan_with_pool(290_000, users=35, prompt_tokens=200, output_tokens=16_000)
    assert plan.budget_tokens is None and plan.rows_budget is None and not plan.helps
    assert "all 35 users" in plan.verdict and "at the budget" not in render(plan)


def test_users_beyond_the_budget_wait():
    plan = plan_with_pool(290_000, budget_tokens=3200, users=500)
    assert plan.rows_budget == 90
    assert "90 of the 500 users run at once, the others wait" in plan.notes


# --- command line -----------------------------------------------------------------------------

BASE = ("--model", "Qwen/Qwen3-1.7B")
GOOD = (*BASE, "--gpu", "H100-80G", "--budget", "3200")


def test_text_output(capsys):
    code, out, err = cli(capsys, *GOOD, "--prompt-tokens", 200, "--output-tokens", 16000)
    assert (code, err) == (0, "")
    lines = {line[:18].strip(): line[18:] for line in out.splitlines()}
    assert lines["KV per token"] == "114,688 bytes per GPU"
    # 79.1 GiB x 0.85 less 3,441,149,952 bytes
    assert lines["KV pool"] == f"{(79.1 * GIB * 0.85 - 3_441_149_952) // 114_688:,.0f} tokens"
    assert lines["recommended"] == "--max-running-requests 187"
    assert lines["verdict"].startswith("helps: 187 requests")
    assert "tokens/s" in lines["at the budget"]


def test_json_output_equals_the_plan(capsys):
    flags = ("--tp", 2, "--kv-cache-dtype", "fp8_e4m3", "--weights-gb", 8, "--json")
    code, out, _ = cli(capsys, *BASE, "--memory-gb", 10, "--users", 300, *flags)
    plan = json.loads(out)
    assert code == 0
    assert plan["weights_bytes"] == 8 * GIB and plan["weights_source"] == "--weights-gb"
    assert plan["kv_bytes_per_token"] == 114_688 // 4
    assert plan["pool_tokens"] == int(4.5 * GIB) // 28_672
    assert plan["budget_tokens"] == plan["pool_tokens"] // 300
    assert plan["budget_tokens_per_s"] is None


def test_memory_overrides_that_of_the_gpu(capsys):
    _, out, _ = cli(capsys, *GOOD, "--memory-gb", 20, "--json")
    assert json.loads(out)["memory_bytes"] == 20 * GIB


def test_gpu_names_in_any_case(capsys):
    for name, gpu in GPUS.items():
        code, out, _ = cli(capsys, *BASE, "--gpu", name.lower(), "--budget", 100, "--json")
        assert code == 0 and json.loads(out)["memory_bytes"] == gpu.memory_bytes


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            (*BASE, "--gpu", "X1", "--budget", 100),
            "--gpu X1: not a known card; known: H100",
        ),
        ((*BASE, "--gpu", "L4-24G", "--budget", "many"), "--budget many must be an integer >= 38"),
        ((*BASE, "--gpu", "L4-24G", "--budget", "3.5"), "--budget 3.5 must be an integer >= 38"),
        ((*BASE, "--gpu", "L4-24G", "--budget", 37), "--budget 37 must be an integer >= 38"),
        ((*BASE, "--gpu", "L4-24G", "--budget", -1), "--budget -1 must be an integer >= 38"),
        ((*BASE, "--gpu", "L4-24G", "--users", 0), "--users 0 must be an integer >= 1"),
        ((*BASE, "--gpu", "L4-24G", "--users", 10**6), "--users 1000000 exceeds "),
        ((*BASE, "--gpu", "L4-24G"), "error: give --budget TOKENS or --users N"),
        ((*BASE, "--budget", "100"), "error: give --gpu NAME or --memory-gb N"),
        ((*BASE, "--memory-gb", "0", "--budget", 99), "--memory-gb 0 must be a number above 0"),
        ((*BASE, "--memory-gb", "nan", "--budget", 99), "--memory-gb nan must be a number"),
        ((*BASE, "--memory-gb", "inf", "--budget", 99), "--memory-gb inf must be a number"),
        ((*BASE, "--memory-gb", 3, "--budget", 99), "memory 3.00 GiB x --mem-fraction-static 0.85"),
        ((*GOOD, "--tp", 3), "--tp 3 must divide the 16 attention heads of Qwen/Qwen3-1.7B"),
        ((*GOOD, "--tp", 0), "--tp 0 must be an integer >= 1"),
        ((*GOOD, "--dtype", "int8"), "--dtype int8 is not one of: bfloat16, float16, float32"),
        ((*GOOD, "--kv-cache-dtype", "fp4"), "--kv-cache-dtype fp4 is not one of: auto, fp8_e4m3"),
        ((*GOOD, "--mem-fraction-static", 1), "--mem-fraction-static 1 must be a number above 0"),
        ((*GOOD, "--weights-gb", "big"), "--weights-gb big must be a number above 0"),
        ((*GOOD, "--weights-gb", 70), "is too small for 70.00 GiB of weights a GPU"),
        ((*GOOD, "--max-total-tokens", 37), "--max-total-tokens 37 is below 38, the least budget"),
        ((*GOOD, "--output-tokens", 0), "--output-tokens 0 must be an integer >= 1"),
        ((*GOOD, "--prompt-tokens", "x"), "--prompt-tokens x must be an integer >= 1"),
        ((*GOOD, "--prompt-tokens", 10**7), "--prompt-tokens 10000000 exceeds the pool of "),
        (("--model", "./nope", *GOOD[2:]), "--model ./nope: neither a folder"),
    ],
)
def test_errors_are_one_line_with_exit_code_2(capsys, flags, message):
    code, out, err = cli(capsys, *flags)
    assert (code, out) == (2, "")
    assert err.startswith("longflow plan: error: ") and err.count("\n") == 1
    assert message in err


def test_make_plan_checks_the_budget_itself():
    geom = load_geometry("qwen3-1.7b")
    with pytest.raises(PlanError, match=r"--budget 37 must be an integer >= 38"):
        make_plan(geom, memory_bytes=8 * GIB, budget_tokens=37)


def test_imports_neither_sglang_nor_torch():
    code = (
        "import sys, sglang_longflow.cli.plan; "
        "sys.exit(any(m in sys.modules for m in ('sglang', 'torch', 'transformers')))"
    )
    env = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0


def test_a_budget_that_serve_refuses_is_refused_and_requests_over_the_context_are_told(tmp_path):
    config = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 256,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "vocab_size": 100,
        "max_position_embeddings": 8192,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    geometry = load_geometry(str(tmp_path))
    with pytest.raises(PlanError, match="--budget 9000 is over the model's context of 8192 tokens"):
        make_plan(geometry, memory_bytes=8 << 30, budget_tokens=9000)
    lengths = {"prompt_tokens": 192, "budget_tokens": 8192, "memory_bytes": 8 << 30}
    assert make_plan(geometry, output_tokens=8000, **lengths).notes == ()
    (note,) = make_plan(geometry, output_tokens=8001, **lengths).notes
    assert note.endswith(
        "over the model's context of 8,192: --output-tokens 8000 is what it can do"
    )


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        ({"head_dim": 80}, "head_dim=80: the triton decode kernel takes"),
        ({"num_attention_heads": 128, "num_key_value_heads": 4}, "32 query heads a KV head"),
    ],
)
def test_heads_that_a_gpu_server_refuses_are_no_plan(tmp_path, heads, words):
    config = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 1024,
        "intermediate_size": 128,
        "num_attention_heads": 8,
        "head_dim": 64,
        "vocab_size": 100,
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    assert plan(str(tmp_path), gpu="h100", budget=512).helps
    file.write_text(json.dumps({**config, **heads}))
    with pytest.raises(PlanError, match=words) as told:
        plan(str(tmp_path), gpu="h100", budget=512)
    assert "--kv-decode-kernel reference" in str(told.value)


def test_a_model_of_a_kind_that_was_not_run_is_planned_for_with_a_word():
    config = {**builtin_config("microsoft/phi-4"), "max_position_embeddings": 32768}
    geometry = geometry_from(config, "phi", None)
    note, *_ = make_plan(geometry, memory_bytes=80 * GIB, budget_tokens=800).notes
    assert note.startswith("model_type='phi3': its attention is ordinary, but no model of this")
