# SPDX-License-Identifier: Apache-2.0
"""Every kernel compiles for the page's GPUs, without one, and fits into their shared memory."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "compile_kernels.py"
pytestmark = pytest.mark.slow
#: Bytes a thread that a kernel may spill on sm_90: a few registers, kept in the L1 cache.
SPILLED = 36


def run(*command):
    """A process without Triton's interpreter, which this one has on."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'kernels'}:{SCRIPT.parent}"}
    env.pop("TRITON_INTERPRET", None)
    # Another compiler, as a process has it that imported SGLang where CUDA is installed.
    triton = importlib.util.find_spec("triton").submodule_search_locations[0]
    env["TRITON_PTXAS_BLACKWELL_PATH"] = f"{triton}/backends/nvidia/bin/ptxas"
    command = [sys.executable, "-W", "ignore", *command]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)


def test_kernels_compile_for_every_target_and_the_page_says_so():
    done = run(SCRIPT, "--json", "--check")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {one["gpu"] for one in found} == {"sm_90", "sm_100", "sm_120", "gfx942", "gfx950"}
    assert len({one["kernel"] for one in found}) == 7
    for one in (one for one in found if one["gpu"] == "sm_90"):
        if one["kernel"] == "attend_kernel":  # K and V are loaded ahead of their use
            assert one["async_copies"] >= 2, one
            if one["case"].startswith(("head 64", "head 96", "head 128, bf16,")):
                assert one["spilled_bytes"] <= SPILLED, one


OVERSIZED = """
import dataclasses, compile_kernels as script
cut = script.launch_config
script.launch_config = lambda *a, **k: dataclasses.replace(cut(*a, **k), block_n={block_n})
case = script.Case(head_dim=96, batch=256)
[attend] = [
    launch for launch in script.launches(case, script.GPUS["gfx942"])
    if launch.kernel.__name__ == "attend_kernel"
]
print(*script.problems([script.compiled(attend, "gfx942", case.name)]), sep="\\n")
"""


def test_a_tile_that_is_too_large_is_found():
    fits, too_large = (run("-c", OVERSIZED.format(block_n=block_n)) for block_n in (64, 128))
    assert (fits.returncode, fits.stdout) == (0, "\n"), fits.stderr
    assert "attend_kernel, head 96, bf16, longflow, batch 256: 69,632 bytes" in too_large.stdout


UNKNOWN = """
import compile_kernels as script
[attend] = [
    launch for launch in script.launches(script.Case(batch=8), script.GPUS["gfx942"])
    if launch.kernel.__name__ == "attend_kernel"
]
attend.arguments["maxnreg"] = 128
print(*script.problems([script.compiled(attend, "gfx942", "x")]), sep="\\n")
"""


def test_an_option_that_the_target_does_not_have_is_found():
    done = run("-c", UNKNOWN)
    assert "maxnreg was specified but unrecognised" in done.stdout, done.stderr
