# SPDX-License-Identifier: Apache-2.0
"""A bounded share of the fuzzer: whole request bodies, and the judge that must find faults (3).

`scripts/fuzz_requests.py` is the long one; docs/understand/fuzzing.md says what is judged. Two
seeds are always the same, so that a change is blamed for what it did; LONGFLOW_FUZZ_SEED adds one.
"""

from __future__ import annotations

import asyncio
import functools
import os
from pathlib import Path

import pytest

import fuzz_judge
import fuzz_servers
import harness
from fuzz_bodies import Calls
from fuzz_call import Limits
from fuzz_draw import call_stream
from fuzz_known import is_known
from fuzz_run import Report, fuzz, ours

REQUESTS = 250
SEEDS = (20, 21, *map(int, os.environ.get("LONGFLOW_FUZZ_SEED", "").split()))


@pytest.fixture(scope="module")
def built(smollm2, tmp_path_factory):
    """A variant's model, with SmolLM2's tokenizer."""

    @functools.cache
    def build(kind: str) -> Path:
        return fuzz_servers.build_model(tmp_path_factory.mktemp(kind), smollm2, kind)

    return build


def run(server, variant, model, seed: int, workers: int) -> Report:
    status, document = server.request("/openapi.json")
    assert status == 200
    limits = Limits(variant.budget_tokens, variant.pool_tokens, variant.context_tokens, str(model))
    calls = call_stream(Calls(document, limits).strategy(), REQUESTS, seed)
    wanted = (call for call in calls if is_known(call, limits) is None)
    return asyncio.run(fuzz(server, variant, wanted, workers=workers, check_every=125))


@pytest.mark.e2e
@pytest.mark.skipif(harness.DEVICE != "cpu", reason="float32 tokens, on the CPU")
@pytest.mark.parametrize(
    "name", ["B", *(pytest.param(one, marks=pytest.mark.variant) for one in "FH")]
)
def test_no_body_ends_the_server_or_changes_a_neighbour(built, tmp_path, name):
    variant = fuzz_servers.VARIANTS[name]
    model = built(variant.model)
    with fuzz_servers.start(variant, model, probe=True) as server:
        server.wait_ready()
        for seed in SEEDS if variant.model == "llama" else SEEDS[1:]:
            report = run(server, variant, model, seed, workers=8)
            print(report.text())
            if report.finding:
                replay = report.finding.write(tmp_path, name)
                pytest.fail(
                    f"server {name}, seed {seed}: {report.text()}\nagain: python "
                    f"scripts/fuzz_requests.py --server {name} --probe --replay {replay}"
                )
            assert not ours(report), f"seed {seed}: {ours(report)}"
            assert report.checkpoints >= 1 and report.neighbour_answers > 5


def test_the_judge_sees_what_is_wrong_with_a_pool():
    stats = {
        "pool": {"total_tokens": 400, "available_tokens": 300, "evictable_tokens": 100},
        "tree_held_tokens": 0,
    }
    assert fuzz_judge.pool_problem(stats, 400) == ""
    assert "400 tokens and has" not in fuzz_judge.pool_problem(stats, 400)
    assert "had 500" in fuzz_judge.pool_problem(stats, 500)
    assert "idle" in fuzz_judge.pool_problem(stats | {"tree_held_tokens": 3}, 400)
    leak = {"pool": stats["pool"] | {"available_tokens": 299}, "tree_held_tokens": 0}
    assert "idle" in fuzz_judge.pool_problem(leak, 400)
