# SPDX-License-Identifier: Apache-2.0
"""The watch over a start: what it refuses, and that it leaves Python's methods as they were."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import ModuleType, SimpleNamespace

import pytest

from sglang_longflow.core import runtime
from sglang_longflow.errors import HookNotApplied, UnsupportedSetup
from sglang_longflow.hooks import start_check, verify
from sglang_longflow.settings.config import LongFlowConfig

START, SEND = BaseProcess.start, Connection.send


@pytest.fixture(autouse=True)
def nothing_made_yet(monkeypatch):
    """A process without settings, and without a watch afterwards."""
    process = multiprocessing.current_process()
    monkeypatch.delattr(process, start_check._SETTINGS_MADE, raising=False)
    monkeypatch.setattr(runtime, "_current", None)
    yield
    start_check.release()
    if hasattr(process, start_check._SETTINGS_MADE):
        delattr(process, start_check._SETTINGS_MADE)
    assert (BaseProcess.start, Connection.send) == (START, SEND)


def start_a_process() -> None:
    """The check alone: an unstarted process of a class whose start is watched."""
    BaseProcess.start(multiprocessing.get_context("spawn").Process())


@pytest.fixture
def landed(monkeypatch):
    """Every hook is in place."""
    monkeypatch.setattr(verify, "require_all", lambda: None)


def test_no_process_starts_before_settings_were_made(landed):
    start_check.expect_settings("--kv-budget")
    with pytest.raises(SystemExit, match="--kv-budget: SGLang made its settings past the plugin"):
        start_a_process()


def test_a_second_expectation_changes_nothing():
    start_check.expect_settings("--kv-budget")
    watching = BaseProcess.start
    start_check.expect_settings("--kv-policy")
    assert BaseProcess.start is watching
    start_check.release()
    assert BaseProcess.start is START


def test_a_hook_that_did_not_land_ends_the_start(monkeypatch):
    def fails():
        raise HookNotApplied("1 hook(s) did not land: here")

    monkeypatch.setattr(verify, "require_all", fails)
    start_check.expect_settings("--kv-budget")
    start_check.record_settings()
    with pytest.raises(SystemExit, match=r"--kv-budget: 1 hook.* did not land"):
        start_a_process()


def test_settings_that_were_made_are_watched_no_longer(monkeypatch):
    monkeypatch.setattr(verify, "require_all", lambda: None)
    start_check.expect_settings("--kv-budget")
    start_check.record_settings()
    start_check._check_settings("--kv-budget")
    assert BaseProcess.start is START
    start_check.expect_settings("--kv-budget")
    assert BaseProcess.start is START, "settings with a budget were made here already"


def test_a_scheduler_without_the_plugin_reports_nothing(monkeypatch, capsys):
    sent = []
    monkeypatch.setattr(start_check.os, "kill", lambda *to: sent.append(to))
    reader, writer = multiprocessing.Pipe(duplex=False)
    start_check._expect_scheduler("--kv-budget")
    with pytest.raises(SystemExit):
        writer.send("ready")
    assert not reader.poll() and sent == [(os.getppid(), signal.SIGQUIT)]
    line = "longflow: error: --kv-budget: the plugin is not active in this scheduler's process"
    assert capsys.readouterr().err.startswith(line)


def test_a_scheduler_with_the_plugin_does(monkeypatch):
    monkeypatch.setattr(runtime, "_current", runtime.Runtime(LongFlowConfig(kv_budget=64)))
    reader, writer = multiprocessing.Pipe(duplex=False)
    start_check._expect_scheduler("--kv-budget")
    writer.send("ready")
    assert reader.recv() == "ready"
    assert Connection.send is SEND and BaseProcess.start is START


class Record:
    """Settings that lose names on their way to another process."""

    lost: tuple[str, ...] = ()

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name not in self.lost}


@pytest.mark.parametrize("lost", ["kv_budget", "mark", ""])
def test_what_pickling_drops_is_named(monkeypatch, lost):
    record = Record()
    record.kv_budget = record.mark = 96
    monkeypatch.setattr(Record, "lost", (lost,))
    if not lost:
        return start_check.require_survival(record, ("kv_budget", "mark"), 96)
    with pytest.raises(HookNotApplied, match=rf"^{lost}=96: is lost when Record is handed to"):
        start_check.require_survival(record, ("kv_budget", "mark"), 96)


@pytest.mark.parametrize(
    ("plugins", "platform", "word"),
    [
        (None, None, ""),
        ("other, longflow", None, ""),
        ("longflow,longflow_cpu", "longflow_cpu", ""),
        ("longflow_cpu", None, "SGLANG_PLUGINS='longflow_cpu'"),
        (None, "other", "SGLANG_PLATFORM='other'"),
    ],
)
def test_variables_that_keep_the_plugin_out_of_the_scheduler(monkeypatch, plugins, platform, word):
    module = ModuleType("sglang.srt.environ")
    module.envs = SimpleNamespace(
        SGLANG_PLUGINS=SimpleNamespace(get=lambda: plugins),
        SGLANG_PLATFORM=SimpleNamespace(get=lambda: platform),
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    if not word:
        return start_check.require_plugin_in_children("kv_budget=96")
    with pytest.raises(UnsupportedSetup, match=rf"^kv_budget=96: {word} keeps this plugin out"):
        start_check.require_plugin_in_children("kv_budget=96")


def test_a_class_derived_from_sglangs_settings_is_known_by_its_budget():
    stock = type("ServerArgs", (), {"__module__": "sglang.srt.server_args"})
    theirs = type("Theirs", (stock,), {"__module__": "their.package", "kv_budget": 96})
    alien = type("Alien", (), {"__module__": "their.package", "kv_budget": 96})
    given = [SimpleNamespace(_args=(one(), None)) for one in (theirs, alien)]
    assert [start_check._given_budget(process) for process in given] == ["kv_budget=96", ""]
