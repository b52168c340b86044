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
from sglang_longflow.hooks.extensions import EXTENSIONS
from sglang_longflow.settings.release import TESTED_SGLANG

ROOT = Path(__file__).parents[2]
BUDGET = ("--kv-budget", "96")
TESTED, UNTESTED = TESTED_SGLANG[-1], "0.5.99"


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
            return warm.run(list(words), environment, timeout_s=600)
        return subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, timeout=600, env=environment
        )

    return run


@pytest.fixture
def start(run):
    """``start(folder, *arguments)``: ``python -m sglang.launch_server`` of the fake."""

    def start(folder, *arguments, model="org/model", real=False):
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
        ("dataclass", "--kv-budget: SGLang made its settings past the plugin"),
        ("past from_cli_args", "--kv-budget: SGLang made its settings past the plugin"),
        ("past the hooks", "--kv-budget: SGLang made its settings past the plugin"),
        ("no last step", "--kv-budget: SGLang made its settings past the plugin"),
        # SGLang's registry wraps an inherited class method as a plain function.
        (
            "a derived class",
            "--kv-budget: 1 hook(s) did not land: sglang.srt.server_args.ServerArgs.from_cli_args: "
            "signature changed: expected (cls, args), found (args)",
        ),
        ("no place for others", "kv_budget=96: SGLang's ServerArgs takes no settings of a plugin"),
        ("lost in pickling", "kv_budget=96: is lost when ServerArgs is handed to another process"),
        (
            "no first step",
            "kv_budget=96: SGLang worked these settings out without the plugin in its step "
            "handle_missing_default_values",
        ),
    ],
)
@pytest.mark.sglang
def test_settings_of_another_shape_end_the_start_with_one_line(start, tmp_path, kind, words):
    result = start(fake_sglang.build(tmp_path, kind), *BUDGET)
    assert refusal(result).startswith(f"longflow: error: {words}")
    assert "Traceback" not in result.stderr


@pytest.mark.sglang
def test_a_step_that_sglang_repeats_declares_once(start, tmp_path):
    told = "import atexit; atexit.register(lambda: print(server_args._resolved_overrides))"
    result = start(fake_sglang.build(tmp_path, "steps run twice", between=told), *BUDGET)
    assert result.stdout.startswith("STARTED ready 96\n"), result.stderr
    assert result.stdout.count("('longflow', {'page_size': 1, 'sleep_on_idle': True})") == 1
    assert result.stdout.count("'longflow'") == 1


@pytest.mark.sglang
def test_a_renamed_module_ends_the_start(start, tmp_path):
    """No hook of the settings lands, and the command line's parser drops what it does not know."""
    folder = fake_sglang.build(tmp_path, "past the hooks", settings_module="arguments")
    line = refusal(start(folder, *BUDGET))
    assert line.startswith("longflow: error: --kv-budget: ") and "hook(s) did not land" in line
    assert "ServerArgs.from_cli_args: target is missing" in line


@pytest.mark.parametrize("row", EXTENSIONS, ids=lambda row: row.target.rpartition(".")[2])
@pytest.mark.sglang
def test_an_extension_point_that_is_gone_ends_the_start(start, tmp_path, row):
    """As each of them will be, one day: under another name."""
    folder = fake_sglang.build(tmp_path, without=row.target.rpartition(".")[2])
    line = refusal(start(folder, *BUDGET))
    assert line.startswith("longflow: error: --kv-budget: ") and row.target in line
    assert "target is missing" in line


@pytest.mark.parametrize(
    ("place", "statement", "words"),
    [
        # Another plugin's doings, in the first process, before and after the settings are made.
        (
            "before",
            "from sglang.srt.arg_groups import resolution_hooks as r; r._HOOKS.clear()",
            "--kv-budget: SGLang made its settings past the plugin",
        ),
        (
            "between",
            "os.environ['SGLANG_PLUGINS'] = 'other'",
            "kv_budget=96: SGLANG_PLUGINS='other' keeps this plugin out of the scheduler",
        ),
        (
            "between",
            "os.environ['SGLANG_PLATFORM'] = 'other'",
            "kv_budget=96: SGLANG_PLATFORM='other' keeps this plugin out of the scheduler",
        ),
        (
            "between",
            "os.environ['SGLANG_ENABLE_METADATA_GLUE_GRAPH'] = '1'",
            "SGLANG_ENABLE_METADATA_GLUE_GRAPH=1: a CUDA graph of what the attention backend "
            "prepares is not supported with a KV budget; unset SGLANG_ENABLE_METADATA_GLUE_GRAPH",
        ),
        # In the scheduler's process.
        (
            "in_scheduler",
            "del server_args.__dict__['_longflow_checked']",
            "kv_budget=96: SGLang worked these settings out without the plugin in its step "
            "validate_deepep_v2_dispatch_token_budget",
        ),
        (
            "in_scheduler",
            "del server_args.__dict__['_longflow_declared']",
            "kv_budget=96: SGLang worked these settings out without the plugin in its step "
            "handle_missing_default_values",
        ),
        (
            "in_scheduler",
            "from sglang.srt.mem_cache import allocation; "
            "allocation.ALLOC_FOR_DECODE_FUNCS['cpu'] = load_plugins",
            "ALLOC_FOR_DECODE_FUNCS['cpu']: sglang.srt.plugins.load_plugins allocates decode steps",
        ),
        (
            "made_inside",
            "from sglang.srt.mem_cache import allocation; "
            "allocation.ALLOC_FOR_DECODE_FUNCS['cpu'] = load_plugins",
            "ALLOC_FOR_DECODE_FUNCS['cpu']: sglang.srt.plugins.load_plugins allocates decode steps",
        ),
        (
            "in_scheduler",
            "Scheduler.get_prefill_adder_class = lambda self: PrefillAdder",
            "1 hook(s) did not land: sglang.srt.managers.scheduler.Scheduler."
            "get_prefill_adder_class: ",
        ),
        (
            "made_inside",
            "self.get_prefill_adder_class = lambda: PrefillAdder",
            "Scheduler.get_prefill_adder_class: sglang.srt.managers.schedule_policy.PrefillAdder "
            "admits requests, and knows no budget",
        ),
    ],
)
@pytest.mark.sglang
def test_what_others_undo_ends_the_start(start, tmp_path, place, statement, words):
    result = start(fake_sglang.build(tmp_path, **{place: statement}), *BUDGET)
    assert refusal(result).startswith(f"longflow: error: {words}")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ("Past", "--kv-budget: the plugin is not active in this scheduler's process"),
        (
            "OtherAdmission",
            "1 hook(s) did not land: sglang.srt.managers.scheduler.Scheduler."
            "get_prefill_adder_class: sglang.srt.managers.scheduler.OtherAdmission overrides it "
            "past the plugin",
        ),
    ],
)
@pytest.mark.sglang
def test_a_scheduler_that_goes_past_a_hook_ends_the_start(start, tmp_path, made, words):
    """The hook landed on Scheduler, and the process makes another class."""
    result = start(fake_sglang.build(tmp_path, scheduler=made), *BUDGET, real=made == "Past")
    assert refusal(result).startswith(f"longflow: error: {words}")


@pytest.mark.sglang
def test_a_scheduler_that_overrides_nothing_of_ours_starts(start, tmp_path):
    result = start(fake_sglang.build(tmp_path, scheduler="Derived"), *BUDGET)
    assert result.stdout == "STARTED ready 96\n", result.stderr


@pytest.mark.parametrize("name", ["SGLANG_PLUGINS", "SGLANG_PLATFORM"])
@pytest.mark.sglang
def test_a_plugin_that_is_kept_out_leaves_an_unknown_flag(start, tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "other")
    result = start(fake_sglang.build(tmp_path), *BUDGET)
    assert "error: unrecognized arguments: --kv-budget 96" in refusal(result)


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
from sglang.srt.entrypoints.engine import Engine

def start(args):
    reader, writer = spawn.Pipe(False)
    process = spawn.Process(target=run_scheduler_process, args=(args, None, writer))
    process.start()
    wait([reader, process.sentinel], 60)
    return reader.poll() and reader.recv()

if __name__ == "__main__":
    import signal
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # of a scheduler that ends
    spawn = multiprocessing.get_context("spawn")
    {how}
"""
LOADED_FIRST = """
    load_plugins()
    for budget in ({"kv_budget": 96}, {}):
        args = Engine.server_args_class(model_path="org/model", **budget)
        args.resolve_once()
        print(budget, start(args), flush=True)
"""
RESOLVED_FIRST = """
    args = Engine.server_args_class(model_path="org/model")
    args.kv_budget = 96
    args.resolve_once()
    load_plugins()
    print(start(args), flush=True)
"""


@pytest.mark.parametrize(("made", "answer"), [("Scheduler", "ready"), ("Past", False)])
@pytest.mark.sglang
def test_an_engines_keyword_asks_for_a_budget_too(run, tmp_path, made, answer):
    """No command line has it. A stock engine of the same program starts all the same."""
    folder = fake_sglang.build(tmp_path, scheduler=made)
    (tmp_path / "engine.py").write_text(ENGINE.replace("{how}", LOADED_FIRST))
    result = run(folder, str(tmp_path / "engine.py"))
    assert result.stdout.splitlines() == [f"{{'kv_budget': 96}} {answer}", "{} ready"], (
        result.stderr
    )
    assert ("kv_budget=96: the plugin is not active" in result.stderr) is (not answer)


@pytest.mark.sglang
def test_settings_that_were_worked_out_before_the_plugin_came_are_refused(run, tmp_path):
    """``Engine(server_args=...)`` takes a finished record, and our steps never saw it."""
    (tmp_path / "engine.py").write_text(ENGINE.replace("{how}", RESOLVED_FIRST))
    result = run(fake_sglang.build(tmp_path), str(tmp_path / "engine.py"))
    assert result.stdout == "False\n"
    assert (
        result.stderr.strip()
        .splitlines()[-1]
        .startswith(
            "longflow: error: kv_budget=96: SGLang worked these settings out without the plugin in "
            "its step handle_missing_default_values; call load_plugins() first"
        )
    )


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no first step", "kv_budget=96: SGLang worked these settings out without the plugin"),
        ("lost in pickling", "kv_budget=96: is lost when ServerArgs is handed to another process"),
        ("no place for others", "kv_budget=96: SGLang's ServerArgs takes no settings of a plugin"),
    ],
)
@pytest.mark.sglang
def test_an_engine_gets_the_same_as_an_exception(run, tmp_path, kind, words):
    (tmp_path / "engine.py").write_text(ENGINE.replace("{how}", LOADED_FIRST))
    result = run(fake_sglang.build(tmp_path, kind), str(tmp_path / "engine.py"))
    assert result.returncode == 1 and result.stdout == ""
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"sglang_longflow.errors.HookNotApplied: {words}")


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("no last step", "validate_deepep_v2_dispatch_token_budget"),
        ("a derived class that resolves nothing", "handle_missing_default_values"),
    ],
)
@pytest.mark.sglang
def test_an_engine_without_a_step_is_refused_by_its_scheduler(run, tmp_path, kind, step):
    (tmp_path / "engine.py").write_text(ENGINE.replace("{how}", LOADED_FIRST))
    result = run(fake_sglang.build(tmp_path, kind), str(tmp_path / "engine.py"))
    assert result.stdout.splitlines() == ["{'kv_budget': 96} False", "{} ready"], result.stderr
    assert (
        f"longflow: error: kv_budget=96: SGLang worked these settings out without the plugin "
        f"in its step {step}" in result.stderr
    )


@pytest.mark.parametrize("kind", ["as tested", "dataclass", "past the hooks"])
@pytest.mark.sglang
def test_an_untested_release_refuses_every_setting_of_ours(start, tmp_path, kind):
    line = refusal(start(fake_sglang.build(tmp_path, kind, version=UNTESTED), *BUDGET))
    assert line == (
        f"longflow: error: SGLang {UNTESTED}: not tested with KV budgets ({TESTED} is), so none "
        f"may be set on it; pip install sglang=={TESTED}, or drop --kv-budget"
    )


@pytest.mark.parametrize("kind", ["as tested", "dataclass"])
@pytest.mark.sglang
def test_an_engine_of_an_untested_release_knows_no_such_keyword(run, tmp_path, kind):
    folder = fake_sglang.build(tmp_path, kind, version=UNTESTED)
    (tmp_path / "engine.py").write_text(ENGINE.replace("{how}", LOADED_FIRST))
    result = run(folder, str(tmp_path / "engine.py"))
    assert result.returncode == 1 and result.stdout == ""
    assert f"longflow stays off: SGLang {UNTESTED}: not tested with KV budgets" in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("TypeError: ") and "kv_budget" in last


@pytest.mark.parametrize("version", [TESTED, UNTESTED])
@pytest.mark.parametrize("kind", ["as tested", "dataclass", "past the hooks", "no first step"])
@pytest.mark.sglang
def test_without_a_budget_every_shape_starts_stock(start, tmp_path, kind, version):
    result = start(fake_sglang.build(tmp_path, kind, version=version))
    assert result.stdout == "STARTED ready None\n", result.stderr
    assert "Traceback" not in result.stderr
    off = f"longflow stays off: SGLang {UNTESTED}" in result.stderr
    assert off is (version == UNTESTED)


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
