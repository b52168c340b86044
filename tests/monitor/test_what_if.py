# SPDX-License-Identifier: Apache-2.0
"""The what-if answers are the planner's, for the pool that is there."""

import pytest

from sglang_longflow.monitor.what_if import RunningServer
from sglang_longflow.planner.geometry import PlanError, load_geometry
from sglang_longflow.planner.gpus import GIB, GPUS, gpu_called
from sglang_longflow.planner.plan import make_plan
from sglang_longflow.reasoner import MODEL_DIR

CPU = {
    "kv_policy": "longflow-novel",
    "device_name": "cpu",
    "device_memory_bytes": None,
    "weights_bytes": 0,
}
H100 = {
    "kv_policy": "longflow-novel",
    "device_name": "NVIDIA H100 80GB HBM3",
    "device_memory_bytes": int(79.1 * GIB),
    "weights_bytes": 3_500_000_000,
}


def server(pool_tokens: int = 290_000, **changes) -> RunningServer:
    values = dict(tp=1, dtype="bfloat16", kv_cache_dtype="auto") | changes
    return RunningServer(load_geometry("qwen3-1.7b"), pool_tokens, **values)


def test_rows_follow_from_the_pool_that_is_there():
    found = server().plan(CPU, 3200, 512, 16384)
    assert found["pool_tokens"] == 290_000
    assert found["rows_budget"] == 290_000 // 3200
    assert found["kv_bytes_per_token"] == 114_688
    assert found["budget_tokens_per_s"] is None and found["memory_bytes"] is None
    assert found["concurrency_gain"] > 2


def test_a_known_card_gives_speeds_from_measured_weights():
    found = server().plan(H100, 3200, 512, 16384)
    expected = make_plan(
        load_geometry("qwen3-1.7b"),
        gpu=GPUS["H100-80G"],
        budget_tokens=3200,
        prompt_tokens=512,
        output_tokens=16384,
        model_bytes=3_500_000_000,
        pool_tokens=290_000,
    )
    assert found["budget_tokens_per_s"] == expected.budget_tokens_per_s > 1000
    assert found["weights_source"] == "measured by this server"


def test_users_and_fp8():
    assert server().plan(CPU, 3200, 512, 16384, users=12)["rows_budget"] == 12
    fp8 = server(kv_cache_dtype="fp8_e5m2").plan(CPU, 3200, 512, 16384)
    assert fp8["kv_bytes_per_token"] == 114_688 // 2


def test_what_is_known_of_the_answers_comes_with_the_plan():
    found = server(model="Qwen/Qwen3-1.7B").plan(CPU, 3200, 512, 16384)["quality"]
    assert found.startswith("not measured: longflow eval --model Qwen/Qwen3-1.7B --task ")
    reasoner = RunningServer(
        load_geometry(str(MODEL_DIR)), 5000, 1, "float32", "auto", str(MODEL_DIR)
    )
    known = reasoner.plan(CPU, 345, 100, 2000)["quality"]
    assert known.startswith("94 % of full KV's right answers at 345 (reasoner, ")
    protected = {**CPU, "kv_protect_sink_tokens": 4}
    assert reasoner.plan(protected, 345, 100, 2000)["quality"].startswith("not measured: ")
    longflow = {**CPU, "kv_policy": "longflow"}
    assert reasoner.plan(longflow, 345, 100, 2000)["quality"].startswith("4 % of full KV's")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((37, 512, 100), ("budget=37", "from 38 to 5000")),
        ((5001, 512, 100), ("budget=5001", "from 38 to 5000")),
        ((64, 5001, 100), ("prompt_tokens=5001", "from 1 to 5000")),
        ((64, 0, 100), ("prompt_tokens=0", "from 1 to 5000")),
    ],
)
def test_lengths_beyond_the_pool_are_refused(values, words):
    with pytest.raises(PlanError) as error:
        server(pool_tokens=5000).plan(CPU, *values)
    assert all(word in str(error.value) for word in words)


def test_a_dtype_that_cannot_be_planned_is_named():
    with pytest.raises(PlanError, match="dtype=float8"):
        server(dtype="float8").plan(CPU, 64, 10, 10)


@pytest.mark.parametrize(
    ("name", "gib", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", 79.1, "H100-80G"),
        ("NVIDIA H100 PCIe", 79.1, "H100-PCIE-80G"),
        ("NVIDIA H200", 139.8, "H200-141G"),
        ("NVIDIA A100-SXM4-80GB", 79.1, "A100-80G"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100-40G"),
        ("NVIDIA L4", 22.0, "L4-24G"),
        ("NVIDIA L40S", 44.4, "L40S-48G"),
        ("NVIDIA GeForce RTX 4090", 23.5, "RTX4090-24G"),
        ("NVIDIA B200", 178.4, "B200-180G"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9.5, None),
        ("Radeon", 79.1, None),
    ],
)
def test_cards_by_cudas_name(name, gib, gpu):
    found = gpu_called(name, int(gib * GIB))
    assert (found.name if found else None) == gpu
