# SPDX-License-Identifier: Apache-2.0
"""A hook whose target is missing or changed stops the start-up, by name (7)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import broken_sglang
import harness
from sglang_longflow.settings.release import TESTED_SGLANG

pytestmark = pytest.mark.e2e
REAL_START = True
ROOT = Path(__file__).parents[2]
UNTESTED = "0.5.99"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "target is missing"),
        (
            "changed",
            "signature changed: expected (self, selected_indices), found (self, indices, reserve)",
        ),
        ("bypassed", "kv_budget=64: the plugin is not active in this scheduler's process"),
    ],
)
def test_a_missing_or_changed_target_stops_the_start_with_its_name(tiny_models, how, words):
    result = subprocess.run(
        [sys.executable, str(Path(broken_sglang.__file__)), str(tiny_models("llama")), how],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, **harness.CPU_THREADS, **harness.fast_start()},
        start_new_session=True,
    )
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert "STARTED" not in output
    if how == "bypassed":
        assert f"longflow: error: {words}" in output
        return
    assert f"longflow: error: 1 hook(s) did not land: {broken_sglang.TARGET}: {words}" in output


SGLANG = str(Path(sys.executable).with_name("sglang"))


@pytest.mark.parametrize("command", [[SGLANG, "serve"], ["-m", "sglang.launch_server"]])
@pytest.mark.parametrize("in_file", [False, True], ids=["flag", "yaml"])
def test_an_untested_release_refuses_the_budget_in_one_line(
    tiny_models, tmp_path, command, in_file
):
    """The real SGLang, whose metadata names another release."""
    metadata = tmp_path / f"sglang-{UNTESTED}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {UNTESTED}\n")
    (tmp_path / "server.yaml").write_text("kv-budget: 96\n")
    asked = ["--config", str(tmp_path / "server.yaml")] if in_file else ["--kv-budget", "96"]
    paths = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "kernels")))
    result = subprocess.run(
        [sys.executable, *command, "--model-path", str(tiny_models("llama")), *asked],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,
    )
    line = result.stderr.strip().splitlines()[-1]
    assert result.returncode != 0 and "Traceback" not in result.stderr
    found = f"SGLang {UNTESTED}/{TESTED_SGLANG[-1]}: not tested with KV budgets"
    assert line.startswith(f"longflow: error: {found}")
    assert f"or drop {'kv-budget in ' if in_file else '--kv-budget'}" in line
