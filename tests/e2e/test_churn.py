# SPDX-License-Identifier: Apache-2.0
"""Hundreds of mixed requests with aborts; SGLang's strict checks and ours after every step (4)."""

from __future__ import annotations

import pytest

import harness
from churn import churn

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    "arguments",
    [
        dict(max_total_tokens=2500, chunked_prefill_size=128),
        dict(max_total_tokens=2500, chunked_prefill_size=128, disable_overlap_schedule=True),
    ],
    ids=["overlap", "no-overlap"],
)
def test_nothing_leaks_and_no_budget_is_exceeded(tiny_models, arguments):
    with harness.engine(
        tiny_models("llama"),
        probe=True,
        kv_budget=96,
        kv_budget_allow_full=True,
        stream_interval=4,
        **arguments,
    ) as engine:
        done = engine.loop.run_until_complete(churn(engine, 300, seed=5))
        assert sum(done.values()) == 300
        assert done["prefill only"] == done["refused"] == 30
        assert done["aborted"] >= 10 and done["finished"] >= 150
        report = engine.probe_report()
        assert report["idle_available"] + report["idle_evictable"] == report["total"]
        assert report["idle_protected"] == 0
        assert report["peak_full_rows"] > 5
        harness.cold(engine)
        assert engine.probe_report()["idle_available"] == report["total"]
