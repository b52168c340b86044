# SPDX-License-Identifier: Apache-2.0
"""Shared by all tests: Triton's interpreter, a random state, `--unit` and `--rest` (Makefile)."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import re
import sys
import traceback
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder

import pytest

# No test, and no command that one starts, asks a hub that is not its own.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Workers share the cores, and what tests start inherits it: two OpenMP threads that wait for each
# other beside other processes take ten times as long as one.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
NO_GPU = os.environ.get("LONGFLOW_TEST_DEVICE", "cpu") == "cpu"
#: What `--unit` leaves out. A file that says so in its `pytestmark` is not even imported.
NOT_UNIT = ("sglang", "slow", "e2e", "deploy", "gpu")
NOT_UNIT_FOLDERS = ("e2e", "deploy")
WHOLE_FILE = re.compile(rf"^pytestmark = (?:\[\s*)?pytest\.mark\.(?:{'|'.join(NOT_UNIT)})\b", re.M)


class Interpreted(MetaPathFinder):
    """Imports Triton, and the kernels of this project, for Triton's interpreter.

    Triton decides when a function is defined. Servers that tests start do not inherit the variable.
    """

    def find_spec(self, name, path, target=None):
        if name != "triton" and name.partition(".")[0] != "longflow_kernels":
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TRITON_INTERPRET", "1")
                execute(module)
                if name == "triton":  # the first launch would import it, too late
                    import triton.experimental.gluon.language  # noqa: F401

                    import quick_interpreter

                    quick_interpreter.install()

        spec.loader.exec_module = exec_module
        return spec


class Refused(MetaPathFinder):
    """Refuses SGLang, and remembers it: code under test may catch what it gets."""

    def __init__(self):
        self.by: list[str] = []

    def find_spec(self, name, path, target=None):
        if name != "sglang":
            return None
        frames = [frame for frame, _ in traceback.walk_stack(None)]
        names = [f"{frame.f_code.co_filename}:{frame.f_lineno}" for frame in frames]
        self.by += [one for one in names if "importlib" not in one and __file__ not in one][:1]
        raise ImportError("a unit test imports no SGLang; mark it sglang (CONTRIBUTING.md)")


# As often as by default, the collector takes a third of what importing SGLang takes.
gc.set_threshold(100_000, 50, 50)
REFUSED = Refused()
if NO_GPU:
    sys.meta_path.insert(0, Interpreted())


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--unit", action="store_true", help="what needs seconds and no SGLang: `make check`"
    )
    parser.addoption(
        "--rest", action="store_true", help="what `--unit` leaves out: `make test-rest`"
    )


def pytest_collection_modifyitems(config, items) -> None:
    if config.getoption("rest"):
        left = [item for item in items if is_unit(item) or item.get_closest_marker("variant")]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


def is_unit(item) -> bool:
    """Whether `--unit` runs it."""
    marked = any(item.get_closest_marker(mark) for mark in NOT_UNIT)
    return not marked and not set(NOT_UNIT_FOLDERS) & set(item.path.parent.parts)


def pytest_configure(config) -> None:
    if config.getoption("unit"):
        chosen = f"not ({' or '.join(NOT_UNIT)})"
        given = config.option.markexpr
        config.option.markexpr = f"({given}) and {chosen}" if given else chosen
        sys.meta_path.insert(0, REFUSED)


def pytest_ignore_collect(collection_path, config) -> bool | None:
    if not config.getoption("unit"):
        return None
    if collection_path.is_dir():
        return collection_path.name in NOT_UNIT_FOLDERS or None
    if collection_path.suffix != ".py":
        return None
    return bool(WHOLE_FILE.search(collection_path.read_text(encoding="utf-8"))) or None


@pytest.fixture(autouse=True)
def no_sglang(request):
    """With `--unit`: no test has imported SGLang, or tried to, however it took the refusal."""
    yield
    if request.config.getoption("unit"):
        by, REFUSED.by = REFUSED.by, []
        assert not by, f"SGLang was imported in a unit test, by {by}"
        assert "sglang" not in sys.modules, "SGLang was imported in a unit test"


@pytest.fixture(scope="session")
def caches(tmp_path_factory):
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(autouse=True)
def own_cache(request, monkeypatch, caches):
    """What `longflow eval` measured here is neither read nor added to; made when it is needed."""
    folder = caches / hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    monkeypatch.setenv("LONGFLOW_CACHE", str(folder))


@pytest.fixture(autouse=True)
def seed():
    """Seed Python, and torch if it is loaded; returns the seed for tests' own generators."""
    random.seed(1234)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(1234)
    return 1234
