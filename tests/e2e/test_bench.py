# SPDX-License-Identifier: Apache-2.0
"""``longflow bench`` with servers of its own: budgets, then both kinds of stock SGLang."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
POOL = 600


def test_budgets_and_both_baselines(tiny_models, tmp_path):
    """In a pool of 600, which holds four whole requests, eight run at once at a budget of 64.

    16 requests, eight at a time: SGLang renews the number of running requests that it tells only
    every 15 steps, and on a busy machine eight alone were once over before anyone saw them.
    """
    command = [sys.executable, "-W", "ignore", "-m", "sglang_longflow.cli", "bench"]
    command += [f"--model={tiny_models('llama')}", f"--out={tmp_path}", "--budgets=64,full"]
    command += ["--requests=16", "--concurrency=8", "--stream-interval=4"]
    command += ["--input-tokens=40", "--output-tokens=100"]
    # The pool is given to every server; the attention backend and the page size are not.
    command += ["--", f"--max-total-tokens={POOL}", "--dtype=float32", "--kv-victims", "layer"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "200"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=420, env=env, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    content = json.loads((tmp_path / "bench.json").read_text())
    points = {(point["system"], point["budget"]): point for point in content["points"]}
    names = [("longflow", 64), ("longflow", 0), ("stock", 0), ("stock-same", 0)]
    assert list(points) == names
    for (_, budget), point in points.items():
        assert point["output_tokens_per_s"] == pytest.approx(1600 / point["wall_s"], rel=0.01)
        assert 0 < point["first_token_s_p50"] <= point["first_token_s_p99"] < point["wall_s"]
        assert 0 < point["inter_token_ms_p50"] <= point["inter_token_ms_p99"]
        assert 1 <= point["running_peak"] <= 8
        if not budget:
            # 600 slots hold four whole requests of 140; SGLang admits more and retracts.
            assert point["reached_share"] is None
    bounded = points["longflow", 64]
    assert bounded["reached_share"] == 1.0 and bounded["resident_tokens_mean"] == 64
    assert bounded["retractions"] == 0 and bounded["running_peak"] == 8
    assert points["longflow", 0]["resident_tokens_mean"] == 139
    # Stock SGLang ran without the plugin.
    assert points["stock", 0]["resident_tokens_mean"] is None
    servers = content["settings"]["servers"]
    assert {server["pool_tokens"] for server in servers.values()} == {POOL}
    same, stock = servers["stock-same"]["arguments"], servers["stock"]["arguments"]
    assert "--page-size=1" in same and f"--max-total-tokens={POOL}" in same
    assert not [word for word in (*same, *stock) if word.startswith("--kv-")]
    assert len(list(csv.reader((tmp_path / "bench.csv").open()))) == 5
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "peak running" in done.stdout and "warning" not in done.stdout
