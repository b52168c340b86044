# SPDX-License-Identifier: Apache-2.0
"""Start-up check: every hook of the manifest really wraps its target, with the known signature.

What a patch of the manifest replaces must be there too, with the parameters that it knows.

SGLang logs and swallows a hook that could not be applied, so without this check a server could run
half hooked.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sglang_longflow.errors import HookNotApplied
from sglang_longflow.hooks.extensions import EXTENSIONS
from sglang_longflow.hooks.hook import Hook, Patch
from sglang_longflow.hooks.manifest import MANIFEST, PATCHES


@dataclass(frozen=True)
class HookStatus:
    """Result for one hook or patch; `problem` is empty if all is well."""

    hook: Hook | Patch
    problem: str


def _resolve(target: str) -> Any:
    parent_path, name = target.rsplit(".", 1)
    parent = pkgutil.resolve_name(parent_path)
    value = inspect.getattr_static(parent, name)
    return value.__func__ if isinstance(value, classmethod | staticmethod) else value


def _closed_over(function: Callable[..., Any]) -> Iterator[Any]:
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # an empty cell of another library's wrapper
            yield cell.cell_contents


def _wrapped_by(function: Callable[..., Any] | None, handler: Callable[..., Any]) -> bool:
    """Whether one of the wrappers around the original closes over `handler`."""
    while function is not None:
        if any(value is handler for value in _closed_over(function)):
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def _signature_problem(hook: Hook | Patch, function: Callable[..., Any]) -> str:
    names = tuple(inspect.signature(inspect.unwrap(function)).parameters)
    if hook.first_parameters_only:
        names = names[: len(hook.parameters)]
    if names != hook.parameters:
        expected, found = ", ".join(hook.parameters), ", ".join(names)
        return f"signature changed: expected ({expected}), found ({found})"
    return ""


def check_target(row: Hook | Patch) -> HookStatus:
    """Check that what a hook wraps, or a patch replaces, is there with the parameters it knows."""
    try:
        function = _resolve(row.target)
    except (ImportError, AttributeError, ValueError) as error:
        return HookStatus(row, f"target is missing: {error}")
    return HookStatus(row, _signature_problem(row, function))


def check_hook(hook: Hook, *, applied: bool = True) -> HookStatus:
    """Check one hook; with ``applied=False`` only that the target exists as expected."""
    status = check_target(hook)
    if status.problem or not applied:
        return status
    try:
        handler = hook.handler()
    except ImportError as error:  # of something of SGLang's that it uses
        return HookStatus(hook, f"its handler cannot be imported: {error}")
    if _wrapped_by(_resolve(hook.target), handler):
        return status
    return HookStatus(hook, "not applied: SGLang did not wrap the target (see its log)")


def check_all(*, applied: bool = True) -> list[HookStatus]:
    """Check every hook of the manifest."""
    return [check_hook(hook, applied=applied) for hook in MANIFEST]


def check_patches(*, load: bool = False) -> list[HookStatus]:
    """Check that what the patches made on this machine replace is there, as expected.

    Parameters
    ----------
    load : bool
        Look into installed libraries that this process has not imported too. A server does not:
        nothing is replaced in them, and FlashInfer would take memory of the GPU.
    """
    import torch

    here = ("", "gpu" if torch.cuda.is_available() else "cpu")
    return [
        check_target(patch)
        for patch in PATCHES
        if patch.device in here and (_is_installed(patch) if load else _is_loaded(patch))
    ]


def check_extensions() -> list[HookStatus]:
    """Check that SGLang's extension points that the plugin uses are there, as expected."""
    return [check_target(row) for row in EXTENSIONS]


def check_reached(kind: type) -> list[HookStatus]:
    """Check that a class derived from one of SGLang's overrides no method that a hook is on.

    ``__init__`` is left out: a hook on it is what asks.
    """
    return [
        HookStatus(hook, f"{kind.__module__}.{kind.__qualname__} overrides it past the plugin")
        for hook in MANIFEST
        if _overrides(kind, hook) and not _wrapped_by(_own(kind, hook), hook.handler())
    ]


def _overrides(kind: type, hook: Hook) -> bool:
    parent_path, name = hook.target.rsplit(".", 1)
    if name == "__init__" or not parent_path.rpartition(".")[2][0].isupper():
        return False
    parent = pkgutil.resolve_name(parent_path)
    return kind is not parent and issubclass(kind, parent)


def _own(kind: type, hook: Hook) -> Callable[..., Any]:
    value = inspect.getattr_static(kind, hook.target.rsplit(".", 1)[1])
    return value.__func__ if isinstance(value, classmethod | staticmethod) else value


def require_reached(kind: type) -> None:
    """Stop a server whose objects are of a class that goes past our hooks.

    Raises
    ------
    HookNotApplied
        Names each method and the class that overrides it.
    """
    if broken := check_reached(kind):
        raise HookNotApplied(f"{len(broken)} hook(s) did not land: {_details(broken)}")


def _is_loaded(patch: Patch) -> bool:
    words = patch.target.split(".")[:-1]
    module = ".".join(word for word in words if not word[0].isupper())  # less the class
    return module in sys.modules


def _is_installed(patch: Patch) -> bool:
    return importlib.util.find_spec(patch.target.partition(".")[0]) is not None


def require_all() -> None:
    """Stop a half-hooked server.

    Raises
    ------
    HookNotApplied
        Names each target and what is wrong with it.
    """
    if broken := _broken([*check_all(), *check_extensions()]):
        raise HookNotApplied(f"{len(broken)} hook(s) did not land: {_details(broken)}")


def require_patches() -> None:
    """Stop a scheduler that has replaced what was not as expected, once all its parts are made.

    Raises
    ------
    HookNotApplied
        Names each target and what is wrong with it.
    """
    if broken := _broken(check_patches()):
        raise HookNotApplied(f"{len(broken)} patch(es) have no place: {_details(broken)}")


def _broken(checked: list[HookStatus]) -> list[HookStatus]:
    return [status for status in checked if status.problem]


def _details(broken: list[HookStatus]) -> str:
    return "; ".join(f"{status.hook.target}: {status.problem}" for status in broken)
