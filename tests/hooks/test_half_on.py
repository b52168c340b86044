# SPDX-License-Identifier: Apache-2.0
"""A server that was asked for a budget has one or does not start, whatever SGLang's shape is.

Each start is a fake SGLang (`fake_sglang`) in its own processes. Most of them are forks of one that
has imported torch (`warm_python`); with `real` Python starts them as it does without tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fake_sglang
import warm_python
from sglang_longflow.hooks import start_check

ROOT = Path(__file__).parents[2]
BUDGET = ("--kv-budget", "96")


@pytest.fixture(scope="module")
def warm():
    """Starts Python with torch imported."""
    process = warm_python.WarmPython()
    yield process
    process.stop()


@pytest.fixture
def run(warm):
    """``run(folder, *words)``: Python on a program that imports the fake of a folder, and this
    checkout's plugin; returns the process's result."""

    def run(folder, *words, real=False):
        paths = os.pathsep.join(map(str, (folder, ROOT, ROOT / "kernels")))
        environment = {**os.environ, "PYTHONPATH": paths}
        if not real:
            return warm.run(list(words), environment, timeout_s=120)
        return subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, timeout=120, env=environment
        )

    return run


@pytest.fixture
def start(run):
    """``start(folder, *arguments)``: ``python -m sglang.launch_server`` of the fake."""

    def start(folder, *arguments, model="dummy", real=False):
        words = ("-m", "sglang.launch_server", "--model-path", model, *arguments)
        return run(folder, *words, real=real)

    return start


def refusal(result) -> str:
    """The line that ends a start; the start must have ended."""
    assert result.returncode != 0 and "STARTED" not in result.stdout, result.stderr
    return result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.sglang
def test_the_shape_it_was_tested_with_starts_with_the_budget(start, tmp_path, real):
    result = start(fake_sglang.build(tmp_path), *BUDGET, real=real)
    assert result.stdout == "STARTED ready 96\n", result.stderr


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("struct", "--kv-budget 96: was lost on its way to ServerArgs"),
        ("struct, past from_cli_args", "--kv-budget: SGLang made its settings past the plugin"),
        ("empty __post_init__", "kv_budget=96: ServerArgs.__post_init__ left device=None"),
        ("past the hooks", "--kv-budget: SGLang made its settings past the plugin"),
    ],
)
@pytest.mark.sglang
def test_settings_of_another_shape_end_the_start_with_one_line(start, tmp_path, kind, words):
    result = start(fake_sglang.build(tmp_path, kind), *BUDGET, model="org/model")
    assert refusal(result).startswith(f"longflow: error: {words}")
    assert "Traceback" not in result.stderr


@pytest.mark.sglang
def test_a_renamed_module_ends_the_start(start, tmp_path):
    """No hook of the settings lands, and the command line's parser drops what it does not know."""
    folder = fake_sglang.build(tmp_path, "past the hooks", settings_module="arguments")
    line = refusal(start(folder, *BUDGET))
    assert line.startswith("longflow: error: --kv-budget: SGLang made its settings past the plugin")


@pytest.mark.sglang
def test_a_schedulers_hook_that_is_never_called_ends_the_start(start, tmp_path):
    """It landed on Scheduler.__init__, and the process makes another class."""
    result = start(fake_sglang.build(tmp_path, scheduler="Other"), *BUDGET, real=True)
    assert "--kv-budget: the plugin is not active in this scheduler's process" in refusal(result)


@pytest.mark.sglang
def test_a_yaml_file_asks_for_a_budget_too(start, tmp_path):
    (tmp_path / "server.yaml").write_text("kv-budget: 96\n")
    folder = fake_sglang.build(tmp_path / "fake", "past the hooks")
    line = refusal(start(folder, "--config", str(tmp_path / "server.yaml")))
    assert line.startswith("longflow: error: kv-budget in ") and "past the plugin" in line


ENGINE = """
import multiprocessing
from multiprocessing.connection import wait
from sglang.srt.plugins import load_plugins
from sglang.srt.managers.scheduler import run_scheduler_process
from sglang.srt.server_args import ServerArgs

if __name__ == "__main__":
    load_plugins()
    spawn = multiprocessing.get_context("spawn")
    reader, writer = spawn.Pipe(False)
    for budget in ({"kv_budget": 96}, {}):
        args = ServerArgs("dummy", **budget)
        process = spawn.Process(target=run_scheduler_process, args=(args, writer))
        process.start()
        wait([reader, process.sentinel], 60)
        print(budget, reader.poll() and reader.recv(), flush=True)
"""


@pytest.mark.parametrize(("made", "answer"), [("Scheduler", "ready"), ("Other", False)])
@pytest.mark.sglang
def test_an_engines_keyword_asks_for_a_budget_too(run, tmp_path, made, answer):
    """No command line has it. A stock engine of the same program starts all the same."""
    folder = fake_sglang.build(tmp_path, scheduler=made)
    (tmp_path / "engine.py").write_text(ENGINE)
    result = run(folder, str(tmp_path / "engine.py"))
    assert result.stdout.splitlines() == [f"{{'kv_budget': 96}} {answer}", "{} ready"], (
        result.stderr
    )
    assert ("kv_budget=96: the plugin is not active" in result.stderr) is (not answer)


@pytest.mark.parametrize("kind", ["as tested", "struct", "past the hooks"])
@pytest.mark.sglang
def test_an_untested_release_refuses_every_setting_of_ours(start, tmp_path, kind):
    line = refusal(start(fake_sglang.build(tmp_path, kind, version="0.5.23"), *BUDGET))
    assert line == (
        "longflow: error: SGLang 0.5.23: not tested with KV budgets (0.5.17 is), so none may be "
        "set on it; pip install sglang==0.5.17, or drop --kv-budget"
    )


@pytest.mark.parametrize("kind", ["as tested", "struct"])
@pytest.mark.sglang
def test_an_engine_of_an_untested_release_knows_no_such_keyword(run, tmp_path, kind):
    folder = fake_sglang.build(tmp_path, kind, version="0.5.23")
    (tmp_path / "engine.py").write_text(ENGINE)
    result = run(folder, str(tmp_path / "engine.py"))
    assert result.returncode == 1 and result.stdout == ""
    assert "longflow stays off: SGLang 0.5.23: not tested with KV budgets" in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("TypeError: ") and "kv_budget" in last


@pytest.mark.parametrize("version", ["0.5.17", "0.5.23"])
@pytest.mark.parametrize("kind", ["as tested", "struct", "past the hooks"])
@pytest.mark.sglang
def test_without_a_budget_every_shape_starts_stock(start, tmp_path, kind, version):
    result = start(fake_sglang.build(tmp_path, kind, version=version))
    assert result.stdout == "STARTED ready None\n", result.stderr
    assert "Traceback" not in result.stderr
    assert ("longflow stays off: SGLang 0.5.23" in result.stderr) is (version == "0.5.23")


@pytest.mark.parametrize(
    ("program", "is_sglang"),
    [
        ("/usr/bin/sglang", True),
        ("/venv/lib/python3.12/site-packages/sglang/launch_server.py", True),
        ("/home/me/bench.py", False),
        ("-c", False),
    ],
)
def test_other_programs_flags_are_their_own(program, is_sglang):
    assert start_check.runs_sglang([program, "--kv-budget", "96"]) is is_sglang
