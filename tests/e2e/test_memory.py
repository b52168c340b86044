# SPDX-License-Identifier: Apache-2.0
"""Requests that have ended leave nothing behind, in the scheduler and in the process of HTTP."""

from __future__ import annotations

from collections import Counter

import pytest

import census
import harness
from churn import churn

pytestmark = pytest.mark.e2e
REQUESTS = 120


def grown(before: dict, after: dict) -> Counter:
    """Python objects more than before, by type."""
    return Counter(after["objects"]) - Counter(before["objects"])


def test_ended_requests_leave_no_object_behind(tiny_models, tmp_path):
    """Mixed budgets, policies, prefixes and aborts; counted again and again in a quiet state.

    One object forgotten by every request would be `REQUESTS` more. The first round, and the first
    count, fill caches.
    """
    file = tmp_path / "census.json"
    with harness.engine(
        tiny_models("llama"),
        scheduler=census.run_scheduler_process,
        kv_budget=96,
        kv_budget_allow_full=True,
        max_total_tokens=6000,
        stream_interval=4,
        env={"LONGFLOW_CENSUS_FILE": str(file)},
    ) as engine:
        counted = []
        for seed in (1, 2, 3):
            done = engine.loop.run_until_complete(churn(engine, REQUESTS, seed))
            assert sum(done.values()) == REQUESTS
            harness.cold(engine)
            # The scheduler keeps its last batch, whose requests keep the tree as it was then.
            engine.generate(input_ids=harness.prompt(9, seed), sampling_params=harness.greedy(1))
            harness.cold(engine)
            counted.append((census.ask(file), census.census()))
        _, (scheduler, http), (scheduler_after, http_after) = counted
    for process, before, after in (
        ("scheduler", scheduler, scheduler_after),
        ("http", http, http_after),
    ):
        more = grown(before, after)
        growth = (after["bytes"] - before["bytes"]) / 2**20
        print(f"CENSUS {process}: {more.most_common(6)}, {growth:+.1f} MiB")
        assert sum(more.values()) < REQUESTS // 2, (process, more.most_common(10))
