# SPDX-License-Identifier: Apache-2.0
"""examples/planner.py; the other examples need a server (tests/e2e/test_examples.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sglang_longflow import plan

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_the_table_is_the_planners():
    done = run("planner.py")
    assert done.returncode == 0, done.stderr
    _, *rows, users = done.stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["800", "1,600", "3,200", "6,400"]
    found = plan("Qwen/Qwen3-1.7B", gpu="H100-80G", budget=3200, output_tokens=16_000)
    assert rows[2].split() == [
        "3,200",
        f"{found.rows_budget:,}",
        f"{found.rows_full:,}",
        f"{found.throughput_gain:.2f}x",
    ]
    assert users.startswith("200 users: --kv-budget ")


def test_users_for_whom_full_kv_is_enough():
    assert "2 users: full KV is enough" in run("planner.py", "--users=2").stdout


@pytest.mark.parametrize("wrong", [["--gpu", "V100"], ["--model", "nope"]])
def test_what_cannot_be_planned_is_one_line(wrong):
    done = run("planner.py", *wrong)
    assert done.returncode == 1 and wrong[1] in done.stderr and "Traceback" not in done.stderr
