# SPDX-License-Identifier: Apache-2.0
"""Real shapes on a GPU, dummy weights in bf16: large mixtures of experts stay at their budgets.

Dummy weights say nothing about tokens (`test_expert_tokens.py` does, with tiny models of the same
architectures). What is watched here is what only the real shape has: 12 query heads a KV head, 256
experts, kernels and CUDA graphs of that size, and experts that are shared out over two ranks.
"""

from __future__ import annotations

import math

import pytest
import torch

import harness
from harness import greedy, prompt
from programs import load_program
from sglang_longflow.settings.config import config_from
from sglang_longflow.settings.flags import DEFAULT_POLICY

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        harness.DEVICE != "cuda" or not torch.cuda.is_available(),
        reason="set LONGFLOW_TEST_DEVICE=cuda on a machine with a GPU",
    ),
]
BUDGET, NEW_TOKENS = 512, 700
#: Prompts under the budget and over it; the last one goes through in two chunks.
LENGTHS = (16, 100, 300, 500, 513, 800, 1500, 3000)
#: Experts on two ranks; where there is one GPU, both share it.
EXPERTS_ON_TWO_RANKS = dict(tp_size=2, ep_size=2, enforce_disable_flashinfer_allreduce_fusion=True)
if torch.cuda.device_count() == 1:
    EXPERTS_ON_TWO_RANKS |= dict(
        disable_custom_all_reduce=True, env={"LONGFLOW_PROBE_ONE_GPU": "1"}
    )


@pytest.mark.parametrize(
    ("geometry", "ranks"),
    [
        ("qwen3-30b-a3b", {}),
        ("qwen3-30b-a3b", EXPERTS_ON_TWO_RANKS),
        ("glm-4.5-air-slice", {}),
        ("glm-4.5-slice", {}),
        ("minimax-m2-slice", {}),
    ],
    ids=["qwen3-30b-a3b", "experts on two ranks", "glm-4.5-air", "glm-4.5", "minimax-m2"],
)
def test_rows_of_a_real_shape_stay_at_their_budget(tmp_path, geometry, ranks):
    """Eight requests past the budget beside one of full KV, with CUDA graphs; then a prefix hit."""
    folder = load_program("scripts/bench_geometries.py").model_folder(geometry, tmp_path)
    env = {"LONGFLOW_PROBE_SYNCS": "1", **ranks.get("env", {})}
    with harness.engine(
        folder,
        probe=True,
        load_format="dummy",
        kv_policy=DEFAULT_POLICY,
        kv_budget=BUDGET,
        kv_budget_allow_full=True,
        max_total_tokens=20_000,
        chunked_prefill_size=2048,
        **{**ranks, "env": env},
    ) as engine:
        config = config_from(engine.server_args)
        assert config.kv_decode_kernel == "triton" and config.uses_fused_decode
        items = engine.generate(
            input_ids=[prompt(length, length) for length in (*LENGTHS, 200)],
            sampling_params=[greedy(NEW_TOKENS)] * len(LENGTHS) + [greedy(NEW_TOKENS, kv_budget=0)],
            return_logprob=True,
        )
        report = engine.probe_report()
        again = engine.generate(input_ids=prompt(800, 800), sampling_params=greedy(200))
        end = engine.probe_report()
    for length, item in zip(LENGTHS, items[:-1], strict=True):
        meta, stored = item["meta_info"], length + NEW_TOKENS - 1
        assert len(item["output_ids"]) == NEW_TOKENS
        assert meta["kv_budget"] == meta["kv_resident_tokens"] == BUDGET
        assert meta["kv_overwritten_tokens"] + meta["kv_cut_tokens"] == stored - BUDGET
        logprobs = [logprob for logprob, *_ in meta["output_token_logprobs"]]
        assert len(logprobs) == NEW_TOKENS and all(map(math.isfinite, logprobs))
    assert len(items[-1]["output_ids"]) == NEW_TOKENS
    assert items[-1]["meta_info"]["kv_overwritten_tokens"] == 0
    print("GEOMETRY", geometry, {key: report[key] for key in report if key != "trace"})
    assert report["overlap"] and report["radix"] and report["retractions"] == 0
    assert report["peak_running"] == len(items) and report["peak_full_rows"] == len(LENGTHS)
    assert report["graph_steps"] == report["decode_steps"] >= NEW_TOKENS - 1
    assert again["meta_info"]["cached_tokens"] >= 700
    assert again["meta_info"]["kv_resident_tokens"] == BUDGET
    assert end["idle_available"] + end["idle_evictable"] == end["total"]
    assert end["idle_protected"] == 0
