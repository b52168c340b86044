# SPDX-License-Identifier: Apache-2.0
"""A half-hooked server never starts. Imports SGLang (slow), and only inside the tests."""

import dataclasses
import importlib
import subprocess
import sys

import pytest
import torch

from sglang_longflow.errors import HookNotApplied
from sglang_longflow.hooks import verify
from sglang_longflow.hooks.extensions import EXTENSIONS
from sglang_longflow.hooks.manifest import MANIFEST, PATCHES


def original(self, budget):
    return budget


def handler(function, self, budget):
    return function(self, budget)


class Target:
    """Stands in for SGLang: its methods are what hooks are checked against."""

    def plain(self, budget):
        return budget


def wrap(function, inner_handler):
    """As SGLang's HookRegistry wraps: a closure over the handler, with ``__wrapped__``."""

    def wrapper(*args, **kwargs):
        return inner_handler(function, *args, **kwargs)

    wrapper.__wrapped__ = function
    return wrapper


@pytest.fixture
def hook(monkeypatch):
    """A row of the manifest whose target and handler are in this module; not applied yet."""
    module = sys.modules[__name__]
    fake = type(sys)("longflow_fake_sglang")
    fake.Target = type("Target", (), {"plain": Target.plain})
    fake.Target.of_class = classmethod(lambda cls, budget: budget)
    fake.Target.of_none = staticmethod(lambda budget: budget)
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setitem(sys.modules, "sglang_longflow.hooks.fake", module)
    return dataclasses.replace(
        MANIFEST[0],
        target=f"{fake.__name__}.Target.plain",
        kind="around",
        handler_path="fake:handler",
        parameters=("self", "budget"),
        first_parameters_only=False,
    )


def apply(hook, with_handler=handler):
    cls = sys.modules["longflow_fake_sglang"].Target
    cls.plain = wrap(cls.plain, with_handler)


def require(monkeypatch, *hooks, extensions=()):
    monkeypatch.setattr(verify, "MANIFEST", hooks)
    monkeypatch.setattr(verify, "EXTENSIONS", extensions)
    verify.require_all()


def test_an_applied_hook_passes(monkeypatch, hook):
    apply(hook)
    require(monkeypatch, hook)


def test_a_hook_under_another_plugins_wrapper_passes(monkeypatch, hook):
    apply(hook)
    apply(hook, lambda function, *args: function(*args))
    require(monkeypatch, hook)


def test_an_unapplied_hook_stops_the_start(monkeypatch, hook):
    with pytest.raises(HookNotApplied, match=rf"{hook.target}: not applied"):
        require(monkeypatch, hook)


def test_a_target_that_only_others_wrapped_is_unapplied(monkeypatch, hook):
    apply(hook, lambda function, *args: function(*args))
    with pytest.raises(HookNotApplied, match="not applied"):
        require(monkeypatch, hook)


@pytest.mark.parametrize(
    "target",
    [
        "longflow_fake_sglang.Target.gone",
        "longflow_fake_sglang.Gone.plain",
        "longflow_no_such_module.Target.plain",
        "sglang_longflow.no_such_module.function",
    ],
)
def test_a_missing_target_stops_the_start_and_is_named(monkeypatch, hook, target):
    apply(hook)
    with pytest.raises(HookNotApplied, match=rf"{target}: target is missing"):
        require(monkeypatch, dataclasses.replace(hook, target=target))


@pytest.mark.parametrize(
    "parameters",
    [(), ("self",), ("budget", "self"), ("self", "tokens"), ("self", "budget", "more")],
)
def test_a_changed_signature_stops_the_start_even_when_applied(monkeypatch, hook, parameters):
    apply(hook)
    with pytest.raises(HookNotApplied) as caught:
        require(monkeypatch, dataclasses.replace(hook, parameters=parameters))
    message = str(caught.value)
    assert f"{hook.target}: signature changed" in message
    assert f"expected ({', '.join(parameters)})" in message
    assert "found (self, budget)" in message


@pytest.mark.parametrize(("parameters", "fine"), [(("self",), True), (("budget",), False)])
def test_first_parameters_only_compares_the_start(hook, parameters, fine):
    apply(hook)
    status = verify.check_hook(
        dataclasses.replace(hook, parameters=parameters, first_parameters_only=True)
    )
    assert (status.problem == "") is fine


@pytest.mark.parametrize(
    ("name", "parameters"), [("of_class", ("cls", "budget")), ("of_none", ("budget",))]
)
def test_class_and_static_methods_are_read_with_all_their_parameters(hook, name, parameters):
    target = f"longflow_fake_sglang.Target.{name}"
    changed = dataclasses.replace(hook, target=target, parameters=parameters)
    assert verify.check_hook(changed, applied=False).problem == ""
    assert "not applied" in verify.check_hook(changed).problem


def test_every_problem_is_counted_and_named(monkeypatch, hook):
    rows = [
        hook,
        dataclasses.replace(hook, target="longflow_fake_sglang.Target.gone"),
        dataclasses.replace(hook, parameters=("self",)),
    ]
    with pytest.raises(HookNotApplied, match=r"^3 hook\(s\) did not land: ") as caught:
        require(monkeypatch, *rows)
    for part in ("not applied", "target is missing", "signature changed"):
        assert str(caught.value).count(part) == 1


def test_check_without_applied_asks_only_for_the_target(hook):
    assert verify.check_hook(hook, applied=False).problem == ""


def test_empty_cells_of_a_closure_are_no_crash(hook):
    """A wrapper whose cell is not filled (yet, or deleted) must read as not applied."""

    def make():
        def wrapper(self, budget):
            return unset

        wrapper.__wrapped__ = Target.plain
        return wrapper
        unset = None

    sys.modules["longflow_fake_sglang"].Target.plain = make()
    assert "not applied" in verify.check_hook(hook).problem


def test_a_handler_that_cannot_be_imported_is_a_problem_like_others(hook):
    """It uses something of SGLang's that is gone."""
    apply(hook)
    status = verify.check_hook(dataclasses.replace(hook, handler_path="no_such_module:handler"))
    assert status.problem.startswith("its handler cannot be imported: No module named 'sglang_lon")


@pytest.mark.parametrize(
    ("name", "parameters", "problem"),
    [
        ("plain", ("self",), ""),
        ("plain", ("budget",), "signature changed"),
        ("gone", ("self",), "target is missing"),
    ],
)
def test_an_extension_point_that_is_not_as_known_stops_the_start(
    monkeypatch, hook, name, parameters, problem
):
    apply(hook)
    target = f"longflow_fake_sglang.Target.{name}"
    row = dataclasses.replace(EXTENSIONS[0], target=target, parameters=parameters)
    if not problem:
        return require(monkeypatch, hook, extensions=(row,))
    with pytest.raises(HookNotApplied, match=rf"^1 hook\(s\) did not land: {target}: {problem}"):
        require(monkeypatch, hook, extensions=(row,))


def test_a_derived_class_that_overrides_a_hooked_method_is_named(monkeypatch, hook):
    apply(hook)
    monkeypatch.setattr(verify, "MANIFEST", (hook,))
    stock = sys.modules["longflow_fake_sglang"].Target
    verify.require_reached(stock)
    verify.require_reached(type("Same", (stock,), {}))
    verify.require_reached(type("Alien", (), {"plain": Target.plain}))
    theirs = type("Theirs", (stock,), {"plain": Target.plain, "__module__": "their.package"})
    said = rf"^1 hook\(s\) did not land: {hook.target}: their.package.Theirs overrides it past"
    with pytest.raises(HookNotApplied, match=said):
        verify.require_reached(theirs)


# The real manifest


def test_manifest_names_each_target_once_and_never_replaces():
    targets = [hook.target for hook in MANIFEST]
    assert len(targets) == len(set(targets))
    assert {hook.kind for hook in MANIFEST} <= {"before", "after", "around"}
    assert all(hook.why and hook.remove_when for hook in MANIFEST)


def test_patches_name_each_target_once_and_what_makes_them():
    targets = [patch.target for patch in (*PATCHES, *MANIFEST)]
    assert len(targets) == len(set(targets))
    assert {patch.device for patch in PATCHES} <= {"", "cpu", "gpu"}
    assert all(patch.why and patch.remove_when and patch.parameters for patch in PATCHES)
    for patch in PATCHES:
        module, name = patch.made_by.split(":")
        assert hasattr(importlib.import_module(f"sglang_longflow.{module}"), name)


class Library:
    def method(self, first, second=None):
        return first

    @staticmethod
    def function(first):
        return first


@pytest.mark.parametrize(
    ("name", "parameters", "problem"),
    [
        ("method", ("self", "first"), ""),
        ("method", ("self", "second"), "signature changed: expected (self, second), found (self"),
        ("function", ("first",), ""),
        ("gone", ("self",), "target is missing"),
    ],
)
def test_what_a_patch_replaces_must_be_there(monkeypatch, name, parameters, problem):
    fake = type(sys)("longflow_fake_library")
    fake.Library = Library
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    patch = dataclasses.replace(
        PATCHES[0], target=f"{fake.__name__}.Library.{name}", parameters=parameters, device=""
    )
    monkeypatch.setattr(verify, "PATCHES", (patch,))
    (status,) = verify.check_patches()
    assert status.problem.startswith(problem) and bool(status.problem) is bool(problem)
    if problem:
        with pytest.raises(HookNotApplied, match=r"^1 patch\(es\) have no place: longflow_fake"):
            verify.require_patches()
    else:
        verify.require_patches()


def test_patches_of_another_device_or_of_a_missing_library_are_not_looked_at(monkeypatch):
    absent = dataclasses.replace(PATCHES[0], target="no_such_library.f", device="")
    monkeypatch.setattr(verify, "PATCHES", (absent,))
    assert verify.check_patches() == verify.check_patches(load=True) == []
    other = "cpu" if torch.cuda.is_available() else "gpu"
    monkeypatch.setattr(verify, "PATCHES", (dataclasses.replace(PATCHES[-1], device=other),))
    assert verify.check_patches() == []


@pytest.mark.parametrize("target", ["wave.open", "wave.Wave_read.close"])
def test_a_server_imports_no_library_for_the_check_and_doctor_does(monkeypatch, target):
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    function = dataclasses.replace(PATCHES[0], target=target, parameters=(), device="")
    monkeypatch.setattr(verify, "PATCHES", (function,))
    assert verify.check_patches() == [] and "wave" not in sys.modules
    assert [status.problem for status in verify.check_patches(load=True)] == [""]
    assert len(verify.check_patches()) == 1  # it is imported now


APPLIED_ONCE = """
import sglang
from sglang.srt.plugins.hook_registry import HookRegistry

from sglang_longflow.errors import HookNotApplied
from sglang_longflow.hooks import verify
from sglang_longflow.hooks.manifest import MANIFEST, PATCHES
from sglang_longflow.platform.cpu_grammar import apply_reasoners_masks_on_a_cpu
from sglang_longflow.plugin import load_plugin
from sglang_longflow.settings.release import TESTED_SGLANG

assert sglang.__version__ in TESTED_SGLANG, sglang.__version__
assert [s for s in verify.check_all(applied=False) if s.problem] == []
try:
    verify.require_all()
except HookNotApplied as error:
    assert str(error).startswith(f"{len(MANIFEST)} hook(s) did not land"), error
else:
    raise AssertionError("nothing is applied yet, and require_all() was content")
load_plugin()
load_plugin()
HookRegistry.apply_hooks()
verify.require_all()
patches = verify.check_patches(load=True)
assert not [s for s in patches if s.problem] and len(patches) >= 3, patches
verify.require_patches()
# What stands in for an original still tells the original's signature.
apply_reasoners_masks_on_a_cpu()
apply_reasoners_masks_on_a_cpu()
assert [s.problem for s in verify.check_patches() if s.problem] == []
print("all applied")
"""


@pytest.mark.sglang
def test_real_hooks_match_sglang_and_are_found_once_applied():
    """In a process of its own: an engine started earlier in this one has applied them."""
    done = subprocess.run(
        [sys.executable, "-c", APPLIED_ONCE], capture_output=True, text=True, timeout=6000
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "all applied"


def test_verify_itself_imports_no_sglang():
    code = "import sys; import sglang_longflow.hooks.verify; print('sglang' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True
    )
    assert done.stdout.strip() == "False"
    importlib.import_module("sglang_longflow.hooks.verify")
