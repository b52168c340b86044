"""A hook whose target is missing or changed stops the start-up, by name (7)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import broken_sglang
import harness
import pytest

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "target is missing"),
        ("changed", "expected (self, selected_indices), found (self, indices, reserve)"),
    ],
)
def test_a_missing_or_changed_target_stops_the_start_with_its_name(tiny_models, how, words):
    result = subprocess.run(
        [sys.executable, str(Path(broken_sglang.__file__)), str(tiny_models("llama")), how],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **harness.CPU_THREADS},
        start_new_session=True,
    )
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert "STARTED" not in output
    assert f"HookNotApplied: 1 hook(s) did not land: {broken_sglang.TARGET}: " in output
    assert words in output
