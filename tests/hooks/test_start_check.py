# SPDX-License-Identifier: Apache-2.0
"""The watch over a start: what it refuses, and that it leaves Python's methods as they were."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import pytest

from sglang_longflow.core import runtime
from sglang_longflow.errors import HookNotApplied
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


def test_no_process_starts_before_settings_were_made():
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


def test_a_scheduler_without_the_plugin_reports_nothing():
    reader, writer = multiprocessing.Pipe(duplex=False)
    start_check._expect_scheduler("--kv-budget")
    with pytest.raises(HookNotApplied, match="not active in this scheduler's process"):
        writer.send("ready")
    assert not reader.poll()


def test_a_scheduler_with_the_plugin_does(monkeypatch):
    monkeypatch.setattr(runtime, "_current", runtime.Runtime(LongFlowConfig(kv_budget=64)))
    reader, writer = multiprocessing.Pipe(duplex=False)
    start_check._expect_scheduler("--kv-budget")
    writer.send("ready")
    assert reader.recv() == "ready"
    assert Connection.send is SEND and BaseProcess.start is START
