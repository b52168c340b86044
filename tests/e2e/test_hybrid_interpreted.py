# SPDX-License-Identifier: Apache-2.0
"""The fused decode of hybrid models, in Triton's interpreter: the oracle's tokens too."""

from __future__ import annotations

import pytest

import harness
from harness import greedy, prompt
from hybrid_models import FLOAT32_STATES, FULL_LAYERS
from reference_rankings import rankings_of
from token_oracle import expected, load

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]
PROTECT = dict(protect_sink_tokens=4, protect_recent_tokens=16)  # what longflow-novel asks for


@pytest.mark.parametrize(
    ("kind", "new_tokens"),
    [("lfm2", 40), pytest.param("qwen3_next", 12, marks=pytest.mark.variant)],
)
def test_the_fused_kernels_go_by_the_layers_with_keys_and_values(tiny_models, kind, new_tokens):
    """Prompts that are cut and that fill in decode, full KV beside them. Qwen3-Next has heads of
    256, eight of them for each of K and V."""
    folder = tiny_models(kind)
    model = load(folder)
    cases = [
        (prompt(100, 1), 80, "longflow-novel"),
        (prompt(66, 2), 72, "longflow"),
        (prompt(70, 3), 72, "tova"),
        (prompt(25, 4), 0, "longflow"),
    ]

    def wanted_tokens(ids, budget, policy):
        how = dict(policy=policy)
        if policy == "longflow-novel":
            how = dict(ranking=rankings_of(policy, budget, layers=len(FULL_LAYERS[kind])))
        return expected(model, ids, budget or None, new_tokens, **PROTECT, **how)

    wanted = [wanted_tokens(*case) for case in cases]
    with harness.engine(
        folder,
        probe=True,
        interpret=True,
        env=FLOAT32_STATES,
        kv_decode_kernel="triton",
        kv_policy="longflow-novel",
        kv_budget=96,
        kv_budget_allow_full=True,
        max_mamba_cache_size=40,
    ) as engine:
        got = engine.generate(
            input_ids=[ids for ids, _, _ in cases],
            sampling_params=[greedy(new_tokens, kv_budget=b, kv_policy=p) for _, b, p in cases],
        )
        assert harness.outputs(got) == wanted
        report = engine.probe_report()
        assert report["peak_full_rows"] == 3 and report["radix"]
        # LFM2 has no states that a tree can keep under overlap: SGLang goes without.
        assert report["overlap"] is (kind != "lfm2")
