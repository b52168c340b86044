# SPDX-License-Identifier: Apache-2.0
"""Every kernel compiles for an H100, without one: a first look before a GPU's minutes are spent."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED_LIMIT = 227 << 10  # bytes a program may take on sm_90


@pytest.mark.slow
def test_kernels_compile_for_an_h100_and_keep_their_registers(tmp_path):
    script = Path(__file__).parents[2] / "tools" / "compile_for_gpu.py"
    kernels = Path(__file__).parents[2] / "kernels"
    env = {**os.environ, "PYTHONPATH": str(kernels), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    found = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert len(found) == 25
    for name, line in found.items():
        assert line["spilled"] <= 32, line  # bytes a thread: a few registers, kept in L1
        assert line["shared"] <= SHARED_LIMIT, line
        if name.startswith("attend"):  # K and V are loaded ahead of their use
            assert line["async_copies"] >= 2, line
