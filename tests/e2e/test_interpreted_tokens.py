# SPDX-License-Identifier: Apache-2.0
"""Servers whose Triton kernels run in Triton's interpreter give the oracle's tokens too.

In a file beside test_tokens.py, so that the two longest run in two workers.
"""

from __future__ import annotations

import pytest

import harness
from harness import greedy, prompt
from reference_rankings import ReferenceRow, rankings_of
from token_oracle import expected, load

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]


def test_the_fused_kernels_in_a_server(tmp_path):
    """The Triton kernels, interpreted: cut prompts, prefix hits, every policy, full neighbours."""
    folder = harness.build_tiny_model("llama", tmp_path, num_hidden_layers=2)
    model = load(folder)
    protect = dict(protect_sink_tokens=2, protect_recent_tokens=5)
    shared = prompt(40, 7)
    cases = [
        (shared, 64, "longflow"),
        (shared + prompt(4, 8), 48, "longflow"),
        (prompt(120, 9), 48, "longflow"),
        (prompt(70, 14), 48, "longflow-peak"),
        (prompt(28, 15), 40, "longflow-peak"),
        (prompt(30, 10), 50, "streaming"),
        (prompt(33, 12), 48, "tova"),
        (prompt(60, 13), 52, "random"),
        (prompt(25, 11), 0, "longflow"),
    ]

    def wanted_tokens(ids, budget, policy):
        chosen = dict(policy=policy)
        if policy == "longflow-peak":
            chosen = dict(ranking=lambda: ReferenceRow(policy, budget, sinks=2, recent=5))
        return expected(model, ids, budget or 999, 30, **protect, **chosen)

    wanted = [wanted_tokens(*case) for case in cases]
    with harness.engine(
        folder,
        probe=True,
        interpret=True,
        kv_decode_kernel="triton",
        kv_policy="longflow-peak",  # remembers, so all fused policies are served
        kv_budget=64,
        kv_budget_allow_full=True,
        kv_protect_sink_tokens=2,
        kv_protect_recent_tokens=5,
    ) as engine:
        engine.generate(input_ids=shared, sampling_params=greedy(1))
        got = engine.generate(
            input_ids=[ids for ids, _, _ in cases],
            sampling_params=[greedy(30, kv_budget=b, kv_policy=p) for _, b, p in cases],
        )
        assert harness.outputs(got) == wanted
        assert got[0]["meta_info"]["cached_tokens"] > 0
        report = engine.probe_report()
        assert report["overlap"] and report["radix"] and report["peak_full_rows"] == 8


def test_similarity_in_the_fused_kernels_of_a_server(tmp_path):
    """`longflow-novel`, interpreted: cut prompts, a radix prefix hit, and policies without novelty
    beside it, for which the server keeps the same first and last tokens."""
    folder = harness.build_tiny_model("llama", tmp_path, num_hidden_layers=2)
    model = load(folder)
    protect = dict(protect_sink_tokens=4, protect_recent_tokens=16)
    shared = prompt(40, 7)
    cases = [
        (shared + prompt(30, 3), 80, "longflow-novel"),
        (prompt(120, 9), 90, "longflow-novel"),
        (shared, 72, "longflow"),
        (prompt(60, 14), 72, "longflow-peak"),
    ]

    def wanted_tokens(ids, budget, policy):
        chosen = dict(policy=policy)
        if policy == "longflow-novel":
            chosen = dict(ranking=rankings_of(policy, budget, layers=2))
        if policy == "longflow-peak":
            chosen = dict(ranking=lambda: ReferenceRow(policy, budget, sinks=4, recent=16))
        return expected(model, ids, budget, 45, **protect, **chosen)

    wanted = [wanted_tokens(*case) for case in cases]
    with harness.engine(
        folder,
        probe=True,
        interpret=True,
        kv_decode_kernel="triton",
        kv_policy="longflow-novel",
        kv_budget=96,
    ) as engine:
        engine.generate(input_ids=shared, sampling_params=greedy(1))
        got = engine.generate(
            input_ids=[ids for ids, _, _ in cases],
            sampling_params=[greedy(45, kv_budget=b, kv_policy=p) for _, b, p in cases],
        )
        assert harness.outputs(got) == wanted
        assert got[0]["meta_info"]["cached_tokens"] > 0
        assert engine.probe_report()["peak_full_rows"] == 4
