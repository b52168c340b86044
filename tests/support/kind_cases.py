# SPDX-License-Identifier: Apache-2.0
"""What every kind of model is asked on a server, and what it must answer."""

from __future__ import annotations

import harness
from harness import greedy, prompt
from reference_rankings import rankings_of
from token_oracle import assert_same_but_for_ties, expected

NEW_TOKENS = 130
#: Prompts that are cut and that are not, under budgets that are reached; at its last token a row of
#: 40 + 130 - 1 is just full, over 200 it never is; 0 is full KV.
CASES = [
    *((prompt(n, seed), b) for seed, n in enumerate((9, 47, 96, 150)) for b in (48, 97)),
    *((prompt(40, 20), 169), (prompt(40, 20), 200), (prompt(140, 21), 0), (prompt(9, 0), 0)),
]
#: A server that takes them all at once.
SETTINGS = dict(kv_budget=64, kv_budget_max=200, kv_budget_allow_full=True, max_total_tokens=3000)
#: For the fused kernels: prompts that are cut and that fill in decode, full KV beside them.
FUSED_CASES = [
    (prompt(100, 1), 80, "longflow-novel"),
    (prompt(66, 2), 72, "longflow"),
    (prompt(70, 3), 72, "tova"),
    (prompt(25, 4), 0, "longflow"),
]
FUSED_SETTINGS = dict(
    interpret=True,
    kv_decode_kernel="triton",
    kv_policy="longflow-novel",
    kv_budget=96,
    kv_budget_allow_full=True,
)
PROTECT = dict(protect_sink_tokens=4, protect_recent_tokens=16)  # what longflow-novel asks for


def wanted_tokens(model) -> list[list[int]]:
    """The oracle's tokens for `CASES`."""
    wanted = [expected(model, ids, budget or None, NEW_TOKENS) for ids, budget in CASES]
    assert wanted[0] != wanted[-1]  # forgetting shows
    return wanted


def assert_tokens(engine, model, wanted) -> dict:
    """All of `CASES` in one batch, then three alone on slots that others left; returns the report.

    `engine` has `SETTINGS` and traces what it decides.
    """
    got = engine.generate(
        input_ids=[ids for ids, _ in CASES],
        sampling_params=[greedy(NEW_TOKENS, kv_budget=budget) for _, budget in CASES],
        rid=[f"batch-{i}" for i in range(len(CASES))],
    )
    alone = {}
    for i in (4, 7, 10):
        ids, budget = CASES[i]
        params = greedy(NEW_TOKENS, kv_budget=budget)
        alone[i] = engine.generate(input_ids=ids, sampling_params=params, rid=f"alone-{i}")
    report = engine.probe_report()
    for i, item in [*enumerate(got), *alone.items()]:
        ids, budget = CASES[i]
        if not budget:
            assert item["output_ids"] == wanted[i]
            continue
        assert_same_but_for_ties(model, ids, budget, item, wanted[i], report["trace"])
        stored, meta = len(ids) + NEW_TOKENS - 1, item["meta_info"]
        assert meta["kv_resident_tokens"] == min(budget, stored)
        gone = meta["kv_overwritten_tokens"] + meta["kv_cut_tokens"]
        assert gone == max(0, stored - budget)
    # Each row but those of 200 and of full KV.
    assert report["peak_full_rows"] >= 8 and report["retractions"] == 0
    return report


def assert_fused_tokens(engine, model, layers: int, new_tokens: int) -> None:
    """The oracle's tokens for `FUSED_CASES`, of a server with `FUSED_SETTINGS`."""

    def wanted(ids, budget, policy):
        how = dict(policy=policy)
        if policy == "longflow-novel":
            how = dict(ranking=rankings_of(policy, budget, layers))
        return expected(model, ids, budget or None, new_tokens, **PROTECT, **how)

    got = engine.generate(
        input_ids=[ids for ids, _, _ in FUSED_CASES],
        sampling_params=[greedy(new_tokens, kv_budget=b, kv_policy=p) for _, b, p in FUSED_CASES],
    )
    assert harness.outputs(got) == [wanted(*case) for case in FUSED_CASES]
