# SPDX-License-Identifier: Apache-2.0
"""Real shapes on a GPU, dummy weights in bf16: rows of large models stay at their budgets.

Dummy weights say nothing about tokens (`test_expert_tokens.py` and `test_image_tokens.py` do, with
tiny models of the same architectures). What is watched here is what only the real shape has: 12
query heads a KV head, 256 experts, an encoder of images, kernels and CUDA graphs of that size, and
experts that are shared out over two ranks.
"""

from __future__ import annotations

import math

import pytest
import torch

import harness
import vision_models
from harness import greedy, prompt
from programs import load_program
from sglang_longflow.settings.config import config_from
from sglang_longflow.settings.flags import DEFAULT_POLICY
from vision_models import IMAGE, data_url, png, words

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


def judge_bounded(items) -> None:
    """Each went past its budget, accounts for every token, and its numbers stayed finite."""
    for item in items:
        meta = item["meta_info"]
        assert len(item["output_ids"]) == NEW_TOKENS
        assert meta["kv_budget"] == meta["kv_resident_tokens"] == BUDGET
        stored = meta["prompt_tokens"] + NEW_TOKENS - 1
        assert meta["kv_overwritten_tokens"] + meta["kv_cut_tokens"] == stored - BUDGET
        logprobs = [logprob for logprob, *_ in meta["output_token_logprobs"]]
        assert len(logprobs) == NEW_TOKENS and all(map(math.isfinite, logprobs))


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
    assert [item["meta_info"]["prompt_tokens"] for item in items[:-1]] == list(LENGTHS)
    judge_bounded(items[:-1])
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


@pytest.mark.parametrize("kind", vision_models.REAL_KINDS)
def test_images_through_an_encoder_of_a_real_size(tmp_path, kind):
    """Images in prompts that are cut and that fill, beside text and full KV; then a prefix hit."""
    folder = vision_models.build_real_shape(kind, tmp_path)
    large, small = png(1024, 768, 1), png(320, 256, 2)
    prompts = [
        (f"{IMAGE} {words(40, 1)}", (large,)),
        (f"{words(20, 2)} {IMAGE} {words(30, 3)}", (small,)),
        (f"{IMAGE} {words(30, 4)} {IMAGE} {words(30, 5)}", (small, large)),
        (words(600, 6), ()),
        (words(50, 7), ()),
        (f"{IMAGE} {words(40, 8)}", (small,)),  # with full KV
    ]
    with harness.engine(
        folder,
        probe=True,
        load_format="dummy",
        skip_tokenizer_init=False,
        kv_policy=DEFAULT_POLICY,
        kv_budget=BUDGET,
        kv_budget_allow_full=True,
        max_total_tokens=20_000,
        chunked_prefill_size=512,
        env={"LONGFLOW_PROBE_SYNCS": "1"},
    ) as engine:

        def ask(asked, **custom):
            return engine.generate(
                prompt=[text for text, _ in asked],
                image_data=[[data_url(file) for file in files] or None for _, files in asked],
                sampling_params=[greedy(NEW_TOKENS)] * (len(asked) - 1)
                + [greedy(NEW_TOKENS, **custom)],
                return_logprob=True,
            )

        items = ask(prompts, kv_budget=0)
        report = engine.probe_report()
        again = ask(prompts[:1])
        end = engine.probe_report()
    judge_bounded(items[:-1])
    print("IMAGES", kind, [item["meta_info"]["prompt_tokens"] for item in items])
    print("IMAGES", kind, {key: report[key] for key in report if key != "trace"})
    assert items[0]["meta_info"]["prompt_tokens"] > 700  # the picture's are among them
    assert items[0]["meta_info"]["kv_cut_tokens"] > 200
    assert items[-1]["meta_info"]["kv_overwritten_tokens"] == 0
    assert report["peak_running"] == len(items) and report["retractions"] == 0
    assert report["graph_steps"] == report["decode_steps"] >= NEW_TOKENS - 1
    assert again[0]["meta_info"]["cached_tokens"] > 500  # of recurrent layers, at a kept state
    judge_bounded(again)
    assert end["idle_available"] + end["idle_evictable"] == end["total"]
    assert end["idle_protected"] == 0
