# SPDX-License-Identifier: Apache-2.0
"""`Engine` lists the plugin's settings and hands them to SGLang's engine. No model is loaded."""

from __future__ import annotations

import inspect

import pytest

import sglang_longflow
from sglang_longflow import Engine
from sglang_longflow.errors import ConfigError
from sglang_longflow.reasoner import MODEL_DIR
from sglang_longflow.settings.config import FLAGS

pytestmark = pytest.mark.sglang


class Reached(Exception):
    """The settings were accepted; the processes would start now."""


@pytest.fixture
def settings(monkeypatch):
    """``settings(**arguments)``: SGLang's own ServerArgs of an engine with these arguments."""
    from sglang.srt.entrypoints import engine

    def stop(self, server_args, **more):
        raise Reached(server_args)

    monkeypatch.setattr(engine.Engine, "_launch_subprocesses", stop)
    monkeypatch.setattr(engine.atexit, "register", lambda call: call)

    def get(**arguments):
        with pytest.raises(Reached) as found:
            Engine(model_path=str(MODEL_DIR), device="cpu", **arguments)
        return found.value.args[0]

    return get


def test_the_names_that_need_sglang_are_public_and_documented():
    for name in ("Engine", "BudgetedEndpoint", "budgeted", "gen", "kv_budget"):
        assert name in sglang_longflow.__all__
        assert getattr(sglang_longflow, name).__doc__
        assert getattr(sglang_longflow, name).__module__.startswith("sglang_longflow.client")


def test_the_signature_is_the_table_of_flags():
    parameters = inspect.signature(Engine).parameters
    ours = {name: p for name, p in parameters.items() if name.startswith("kv_")}
    assert list(ours) == [flag.name for flag in FLAGS]
    for flag in FLAGS:
        default = ours[flag.name].default
        assert default == (None if flag.name == "kv_policy" else flag.default), flag.name


def test_settings_reach_sglang(settings):
    found = settings(kv_budget=96, kv_policy="longflow", kv_budget_allow_full=True)
    assert (found.kv_budget, found.kv_policy, found.kv_budget_allow_full) == (96, "longflow", True)
    assert found.kv_protect_sink_tokens == 0


def test_without_a_budget_it_is_sglangs_engine(settings):
    assert settings(max_total_tokens=500).kv_budget is None


def test_a_wrong_setting_is_refused():
    with pytest.raises(ConfigError, match="kv_budget=10: below the minimum"):
        Engine(model_path=str(MODEL_DIR), device="cpu", kv_budget=10)
