# SPDX-License-Identifier: Apache-2.0
"""Models with recurrent layers on a GPU, in bf16, with SGLang's defaults and FlashInfer.

Tokens and victims are judged by the oracle in float32, beside what the oracle itself makes of them
in bf16: recurrent states and routers of experts amplify rounding.
"""

from __future__ import annotations

import pytest

import harness
import longflow_oracle
from churn import churn
from gpu_judge import judge_beside_rounding, load_reference, of_rounding, of_server
from harness import greedy, prompt
from hybrid_models import KINDS
from reference_rankings import REMEMBERING

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        harness.DEVICE != "cuda", reason="set LONGFLOW_TEST_DEVICE=cuda on a machine with a GPU"
    ),
]
NEW_TOKENS = 120
COMMON = prompt(260, 1)


@pytest.fixture(scope="module", params=KINDS)
def served(request, tiny_models):
    """A kind, its folder and its probed engine."""
    kind, folder = request.param, tiny_models(request.param)
    with harness.engine(
        folder,
        probe=True,
        kv_budget=96,
        kv_budget_max=400,
        kv_budget_allow_full=True,
        max_total_tokens=6000,
        max_mamba_cache_size=160,
        stream_interval=4,
        chunked_prefill_size=512,
        # SGLang's choice for Nemotron-H compiles CUTLASS kernels for many minutes at first.
        moe_runner_backend="triton",
        env={"LONGFLOW_PROBE_TRACE": "1", "LONGFLOW_PROBE_SYNCS": "1"},
    ) as running:
        yield kind, folder, running


def test_tokens_in_a_batch_and_after_a_prefix(served):
    """Rows that grow, overwrite and are cut, full KV beside them; then prompts that are known."""
    kind, folder, engine = served
    reference = load_reference(folder)
    cases = [
        (prompt(length, seed), budget)
        for seed, length in enumerate((9, 96, 700))
        for budget in (48, 97)
    ]
    items = engine.generate(
        input_ids=[ids for ids, _ in cases] + [prompt(30, 7)],
        sampling_params=[greedy(NEW_TOKENS, kv_budget=budget) for _, budget in [*cases, (0, 0)]],
        rid=[f"batch-{i}" for i in range(len(cases) + 1)],
    )
    report = engine.probe_report()
    # LFM2 has no states that a tree can keep under overlap: SGLang goes without.
    assert report["overlap"] is not kind.startswith("lfm2")
    assert report["radix"] and report["retractions"] == 0
    assert report["peak_full_rows"] == len(cases)
    assert report["graph_steps"] == report["decode_steps"] > 0
    print("SYNCS", report["synchronisations"])
    assert not any("sglang_longflow" in place for place in report["synchronisations"])
    trace = report["trace"]
    seen = list(zip(cases, items, strict=False))
    harness.cold(engine)
    for turn, ids in enumerate((COMMON, COMMON + prompt(40, 2), COMMON + prompt(40, 2))):
        params = greedy(NEW_TOKENS, kv_budget=300)
        item = engine.generate(input_ids=ids, sampling_params=params, rid=f"turn-{turn}")
        assert turn == 0 or item["meta_info"]["cached_tokens"] > 0
        seen.append(((ids, 300), item))
    trace |= engine.probe_report()["trace"]  # the tree's bytes were compared after every step
    judged = []
    for (ids, budget), item in seen:
        assert item["meta_info"]["kv_resident_tokens"] == budget
        judged.append(of_server(reference, ids, budget, item, trace))
    rounding = [of_rounding(reference, ids, budget, NEW_TOKENS) for ids, budget in cases[::2]]
    judge_beside_rounding(judged, rounding)


def test_nothing_leaks_and_no_budget_is_exceeded(served):
    _, _, engine = served
    done = engine.loop.run_until_complete(churn(engine, 150, seed=6))
    report = engine.probe_report()  # strict checks of SGLang and of the probe after every step
    report.pop("trace")
    print("CHURN", done, report)
    assert sum(done.values()) == 150 and done["finished"] >= 75 and done["aborted"] >= 3
    assert report["idle_available"] + report["idle_evictable"] == report["total"]
    assert report["idle_protected"] == 0
    assert report["idle_states"] == report["total_states"] > 0


@pytest.mark.parametrize(
    "names", [*REMEMBERING, longflow_oracle.POLICIES], ids=lambda names: names[0]
)
def test_every_policy_runs_in_graphs(tiny_models, names):
    """Each fills its rows, none waits for the GPU, and none outgrows its budget."""
    with harness.engine(
        tiny_models("qwen3_next"),
        probe=True,
        kv_policy=names[0],
        kv_budget=96,
        max_total_tokens=6000,
        max_mamba_cache_size=160,
        env={"LONGFLOW_PROBE_SYNCS": "1"},
    ) as engine:
        asked = [(prompt(length, length), name) for name in names for length in (20, 300)]
        items = engine.generate(
            input_ids=[ids for ids, _ in asked],
            sampling_params=[greedy(120, kv_policy=name) for _, name in asked],
        )
        report = engine.probe_report()
    assert [item["meta_info"]["kv_resident_tokens"] for item in items] == [96] * len(asked)
    assert report["graph_steps"] == report["decode_steps"] >= 119
    assert not any("sglang_longflow" in place for place in report["synchronisations"])
