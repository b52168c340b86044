# SPDX-License-Identifier: Apache-2.0
"""The public API: what docs/reference/api.md lists, what it costs to import, and what it does."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

import sglang_longflow

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_document_lists_exactly_what_is_public():
    heads = re.findall(r"^## `(\w+)`$", DOCUMENT, re.MULTILINE)
    assert sorted(heads) == sorted(sglang_longflow.__all__)
    assert len(set(heads)) == len(heads)
    assert "names and meanings are kept within a\nminor version" in DOCUMENT


def test_every_public_name_has_a_home_and_is_found():
    homes = [name for names in sglang_longflow._HOMES.values() for name in names]
    assert sorted([*homes, "__version__"]) == sorted(sglang_longflow.__all__)
    assert set(sglang_longflow.__all__) <= set(dir(sglang_longflow))
    # tests/client looks at those that import SGLang.
    light = set(homes) - {"Engine", "BudgetedEndpoint", "budgeted", "gen", "kv_budget"}
    assert len(light) >= 9
    assert all(getattr(sglang_longflow, name).__doc__ for name in light)


def test_what_type_checkers_see_is_what_is_imported():
    """The block under TYPE_CHECKING and the table of homes say the same."""
    source = inspect.getsource(sglang_longflow)
    seen = {
        module: {name.strip() for name in names.split(",")}
        for module, names in re.findall(
            r"^    from sglang_longflow\.([\w.]+) import (.+)$", source, re.MULTILINE
        )
    }
    assert seen == {module: set(names) for module, names in sglang_longflow._HOMES.items()}


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'budget'"):
        _ = sglang_longflow.budget
    assert not hasattr(sglang_longflow, "make_plan")


def test_the_import_is_free_of_heavy_packages():
    code = (
        "import sys, sglang_longflow\n"
        "heavy = {'torch', 'sglang', 'yaml', 'httpx', 'numpy', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "sglang_longflow.Budget(96).params()\n"
        "sglang_longflow.plan('qwen3-1.7b', gpu='l4-24g', budget=3200)\n"
        "heavy -= {'yaml', 'httpx', 'rich'}  # huggingface_hub looks the model up with them\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "sglang_longflow.stats\n"
        "assert not {'torch', 'sglang'} & set(sys.modules)\n"
        "print(callable(sglang_longflow.plan))"
    )
    assert in_a_new_process(code) == "True"


def test_no_module_takes_the_place_of_a_function():
    """Importing a module binds its name in its parent: no module may be called like a function."""
    code = (
        "import sglang_longflow.planner.plan, sglang_longflow.cli.plan, sglang_longflow as ours\n"
        "import sglang_longflow.monitor.client, sglang_longflow.client.budget\n"
        "print(type(ours.plan).__name__, type(ours.stats).__name__, type(ours.Budget).__name__)"
    )
    assert in_a_new_process(code) == "function function type"


def test_plan_is_the_commands_plan():
    from sglang_longflow.planner.geometry import load_geometry
    from sglang_longflow.planner.gpus import GIB, GPUS
    from sglang_longflow.planner.plan import make_plan

    found = sglang_longflow.plan(
        "Qwen/Qwen3-1.7B", gpu="h100-80g", budget=3200, users=300, tp=2, weights_gb=8
    )
    assert isinstance(found, sglang_longflow.Plan)
    assert found.quality.startswith("not measured: longflow eval --model Qwen/Qwen3-1.7B ")
    assert replace(found, quality="") == make_plan(
        load_geometry("qwen3-1.7b"),
        gpu=GPUS["H100-80G"],
        budget_tokens=3200,
        users=300,
        tp=2,
        model_bytes=8 * GIB,
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"budget": 37}, "--budget 37 must be an integer >= 38"),
        ({"budget": 99.5}, "--budget 99.5 must be an integer >= 38"),
        ({"budget": 99, "gpu": "X1"}, "--gpu X1: not a known card; known: H100-80G"),
        ({"budget": 99, "gpu": None}, "give --gpu NAME or --memory-gb N"),
        ({"budget": 99, "max_total_tokens": 0}, "--max-total-tokens 0 must be an integer >= 1"),
        ({}, "give --budget TOKENS or --users N"),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused_by_name(more, message):
    with pytest.raises(sglang_longflow.PlanError, match=re.escape(message)):
        sglang_longflow.plan("qwen3-1.7b", **{"gpu": "L4-24G", **more})


def test_plan_has_every_flag_of_the_command():
    import argparse

    from sglang_longflow.cli.plan import add_plan_arguments

    parser = argparse.ArgumentParser(add_help=False)
    add_plan_arguments(parser)
    flags = {action.dest: action.default for action in parser._actions}
    parameters = inspect.signature(sglang_longflow.plan).parameters
    assert set(parameters) == set(flags)
    for name, parameter in parameters.items():
        if name != "model":
            assert parameter.default == flags[name], name


def test_a_budget_in_every_form():
    budget = sglang_longflow.Budget(1600, "longflow")
    assert budget.params() == {"custom_params": {"kv_budget": 1600, "kv_policy": "longflow"}}
    assert budget.headers() == {"X-KV-Budget": "1600", "X-KV-Policy": "longflow"}
    assert sglang_longflow.Budget(0).params() == {"custom_params": {"kv_budget": 0}}
    assert sglang_longflow.Budget().params() == {"custom_params": {}}
    assert sglang_longflow.Budget().headers() == {}


def test_the_headers_are_those_that_a_server_reads():
    from sglang_longflow.core import http_budget

    source = inspect.getsource(http_budget).lower()
    assert all(name.lower() in source for name in sglang_longflow.Budget(1, "x").headers())


@pytest.mark.parametrize("wrong", [(-1,), (True,), ("96",), (96.0,), (96, 3)])
def test_a_budget_that_no_server_can_accept_is_refused(wrong):
    with pytest.raises(ValueError, match=r"kv_budget=|kv_policy="):
        sglang_longflow.Budget(*wrong)


def test_stats_lists_the_fields_of_the_route():
    from sglang_longflow.monitor.snapshots import not_known

    fields = {"state", "age_s", *not_known({})}
    assert set(sglang_longflow.Stats.__annotations__) == fields


def test_stats_of_an_address_that_is_none():
    with pytest.raises(sglang_longflow.ConfigError, match="url='localhost'"):
        sglang_longflow.stats("localhost")
    with pytest.raises(sglang_longflow.NoAnswer, match="does not answer"):
        sglang_longflow.stats("http://127.0.0.1:9", timeout_s=1)


def test_types_travel_with_the_package():
    assert (ROOT / "sglang_longflow" / "py.typed").exists()
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "py.typed" in content["tool"]["setuptools"]["package-data"]["sglang_longflow"]


def test_a_type_checker_knows_the_names_and_what_they_return(tmp_path):
    (tmp_path / "program.py").write_text(
        "from sglang_longflow import Budget, plan, stats\n"
        "import sglang_longflow\n"
        "reveal_type(plan('m', gpu='x', budget=99).helps)\n"
        "reveal_type(Budget(99).params())\n"
        "reveal_type(stats('u')['queued_requests'])\n"
        "sglang_longflow.nothing\n"
    )
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--ignore-missing-imports"]
    command += [
        "--no-site-packages",
        "--explicit-package-bases",
        "--cache-dir",
        str(tmp_path / "cache"),
        "program.py",
    ]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    told = re.findall(r'type is "(.*)"|error: (.*)', done.stdout)
    assert told == [
        ("bool", ""),
        ("dict[str, Any]", ""),
        ("int | None", ""),
        ("", 'Module has no attribute "nothing"  [attr-defined]'),
    ], done.stdout + done.stderr
