# SPDX-License-Identifier: Apache-2.0
"""How kernels are launched: every argument by its name, none standing in for an absent tensor."""

import ast
import importlib
from pathlib import Path

import pytest

import longflow_kernels

KERNELS = Path(longflow_kernels.__file__).parent
OPS = ("attend_score_evict/op.py", "novelty/op.py", "compress_prompt/op.py")


def launches():
    """(file, kernel's name, the call) of every ``name_kernel[grid](...)``."""
    for file in sorted(KERNELS.rglob("*.py")):
        for here in ast.walk(ast.parse(file.read_text())):
            if isinstance(here, ast.Call) and isinstance(here.func, ast.Subscript):
                name = ast.unparse(here.func.value)
                if name.endswith("_kernel"):
                    yield file.relative_to(KERNELS).as_posix(), name, here


def test_all_launches_are_found():
    assert {file for file, _, _ in launches()} == set(OPS)
    assert len({name for _, name, _ in launches()}) == 7


@pytest.mark.parametrize("launch", launches(), ids=lambda launch: launch[1])
def test_every_argument_is_given_by_name(launch):
    """Two numbers exchanged would be a wrong victim that nothing reports."""
    _, name, call = launch
    assert call.args == [], f"{name}: {[ast.unparse(arg) for arg in call.args]}"


@pytest.mark.parametrize("launch", launches(), ids=lambda launch: launch[1])
def test_no_tensor_stands_in_for_another(launch):
    """An optional tensor that is absent is None."""
    file, name, call = launch
    module = importlib.import_module("longflow_kernels." + file[:-3].replace("/", "."))
    pointers = [arg for arg in getattr(module, name).arg_names if arg.endswith("_ptr")]
    given = {key.arg: key.value for key in call.keywords if key.arg in pointers}
    choices = [value for value in given.values() if isinstance(value, ast.IfExp)]
    assert [ast.unparse(v) for v in choices if ast.unparse(v.orelse) != "None"] == []
    assert len({ast.unparse(value) for value in given.values()}) == len(given)
