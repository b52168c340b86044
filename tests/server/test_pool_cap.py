# SPDX-License-Identifier: Apache-2.0
"""The pool of a server on a CPU: a part of what is free, and no more than its requests need."""

from __future__ import annotations

import json

import pytest

from sglang_longflow.planner.geometry import load_geometry
from sglang_longflow.reasoner import MODEL_DIR
from sglang_longflow.server.free_memory import Free
from sglang_longflow.server.pool_cap import PROCESSES_BYTES, cap_pool, tokens_for

GB = 10**9
MODEL = {"model_path": str(MODEL_DIR)}
TOKEN_BYTES = 8 * 2 * 2 * 64 * 4  # layers, K and V, KV heads, head size, float32


def cap(gigabytes: float, most: int | None = None, dtype: str = "float32", **more):
    return cap_pool(MODEL | more, dtype, Free(int(gigabytes * GB), "memory"), most)


def test_a_quarter_of_what_weights_and_processes_leave():
    found = cap(24)
    assert 4.5 * GB < found.tokens * TOKEN_BYTES < (24 * GB - PROCESSES_BYTES) / 4
    assert found.reason == "capped by free memory, 24.0 GB"
    assert 1.9 < cap(24, dtype="bfloat16").tokens / found.tokens < 2.1
    assert 3.8 < cap(24, kv_cache_dtype="fp8_e5m2").tokens / found.tokens < 4.1


def test_weights_are_not_the_pools():
    """Qwen3-1.7B: 1.72 billion parameters; 28 layers, 8 KV heads of 128."""
    geometry = load_geometry("qwen3-1.7b")
    found = cap_pool(MODEL, "bfloat16", Free(24 * GB, "memory"), model_geometry=geometry)
    left = 24 * GB - PROCESSES_BYTES - 2 * 1.72e9
    assert found.tokens * (28 * 2 * 8 * 128 * 2) == pytest.approx(left / 4, rel=0.01)


def test_what_is_tight_is_still_divided():
    found = cap(3)
    assert found.tokens == int(3 * GB) // 8 // 4 // TOKEN_BYTES
    assert cap(0).tokens == 1


def test_no_more_than_all_requests_need():
    assert cap(24, most=9000).tokens == 9000 and "all requests" in cap(24, most=9000).reason
    assert cap(24, most=10**9) == cap(24)
    assert tokens_for(3, 1000) > 3 * 1000


def test_what_limits_is_named():
    found = cap_pool(MODEL, "float32", Free(5 * GB, "cgroup"))
    assert found.reason == "capped by what the cgroup leaves, 5.0 GB"


def test_quantized_weights_of_unknown_size(tmp_path):
    config = json.loads((MODEL_DIR / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
    found = cap_pool({"model_path": str(tmp_path)}, "float32", Free(24 * GB, "memory"))
    assert found.tokens * TOKEN_BYTES == pytest.approx((24 * GB - PROCESSES_BYTES) / 4, rel=0.01)
