# SPDX-License-Identifier: Apache-2.0
"""Tensor parallelism: each rank bounds its own rows and picks its own victims.

A rank has a GPU of its own where there are two; else both share one, which tests all but the way
between two GPUs.
"""

from __future__ import annotations

import pytest
import torch

import harness
from churn import churn
from gpu_judge import NOISE_LIMIT, load_reference, parting
from harness import greedy, outputs, prompt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        harness.DEVICE != "cuda" or not torch.cuda.is_available(),
        reason="set LONGFLOW_TEST_DEVICE=cuda on a machine with a GPU",
    ),
]
PROMPTS = [prompt(length, 700 + length) for length in (9, 64, 200, 700)]
SETTINGS = dict(
    kv_budget=96,
    kv_budget_allow_full=True,
    max_total_tokens=6000,
    chunked_prefill_size=512,
    stream_interval=4,
    # Its all-reduce may use NVLink multicast, which not every host lends.
    enforce_disable_flashinfer_allreduce_fusion=True,
)
TWO_RANKS = dict(probe=True, tp_size=2)
if torch.cuda.device_count() == 1:
    # Its all-reduce writes into the other GPU's memory.
    TWO_RANKS.update(disable_custom_all_reduce=True, env={"LONGFLOW_PROBE_ONE_GPU": "1"})


@pytest.fixture(scope="module")
def engine(tiny_models):
    with harness.engine(tiny_models("llama"), **TWO_RANKS, **SETTINGS) as running:
        yield running


def test_rows_stay_at_their_budget_on_both_ranks(engine):
    """The probe of each rank checks its own rows, pool and radix tree after every step."""
    items = engine.generate(input_ids=PROMPTS, sampling_params=[greedy(220)] * len(PROMPTS))
    assert [item["meta_info"]["kv_resident_tokens"] for item in items] == [96] * len(PROMPTS)
    again = engine.generate(input_ids=PROMPTS[2], sampling_params=greedy(50))
    assert again["meta_info"]["cached_tokens"] > 0  # the radix cache is in use
    report = engine.probe_report()
    assert report["overlap"] and report["radix"] and report["retractions"] == 0


def test_where_nothing_is_overwritten_tokens_equal_those_of_one_gpu(engine, tiny_models):
    """Sums over ranks round otherwise: where tokens part, the two best logits must be close."""
    params = [greedy(150, kv_budget=0)] * len(PROMPTS)
    harness.cold(engine)
    two = outputs(engine.generate(input_ids=PROMPTS, sampling_params=params))
    with harness.engine(tiny_models("llama"), **SETTINGS) as single:
        one = outputs(single.generate(input_ids=PROMPTS, sampling_params=params))
    reference = load_reference(tiny_models("llama"))
    for ids, ours, theirs in zip(PROMPTS, two, one, strict=True):
        first, margin = parting(reference, ids, ours, theirs)
        print(f"TP {len(ids)}: first difference {first}, margin {margin:.1f} times the noise")
        assert margin < NOISE_LIMIT


def test_nothing_leaks(engine):
    done = engine.loop.run_until_complete(churn(engine, 150, seed=8))
    report = engine.probe_report()
    assert sum(done.values()) == 150 and done["finished"] >= 100
    assert report["idle_available"] + report["idle_evictable"] == report["total"]
    assert report["retractions"] == 0


def test_as_many_run_at_once_as_fit_the_pool(tiny_models):
    with harness.engine(
        tiny_models("llama"),
        **TWO_RANKS,
        **{**SETTINGS, "kv_budget_allow_full": False, "max_total_tokens": 1000},
    ) as engine:
        prompts = [prompt(20, 1000 + i) for i in range(24)]
        results = engine.generate(input_ids=prompts, sampling_params=[greedy(300)] * 24)
        assert all(len(tokens) == 300 for tokens in outputs(results))
        report = engine.probe_report()
        assert (report["peak_running"], report["retractions"]) == (1000 // 96, 0)
