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


def check_hook(hook: Hook, *, applied: bool = True) -> HookStatus:
    """Check one hook; with ``applied=False`` only that the target exists as expected."""
    try:
        function = _resolve(hook.target)
    except (ImportError, AttributeError, ValueError) as error:
        return HookStatus(hook, f"target is missing: {error}")
    problem = _signature_problem(hook, function)
    if not problem and applied and not _wrapped_by(function, hook.handler()):
        problem = "not applied: SGLang did not wrap the target (see its log)"
    return HookStatus(hook, problem)


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
        check_patch(patch)
        for patch in PATCHES
        if patch.device in here and (_is_installed(patch) if load else _is_loaded(patch))
    ]


def _is_loaded(patch: Patch) -> bool:
    words = patch.target.split(".")[:-1]
    return (
        ".".join(word for word in words if not word[0].isupper()) in sys.modules
    )  # less the class


def _is_installed(patch: Patch) -> bool:
    return importlib.util.find_spec(patch.target.partition(".")[0]) is not None


def check_patch(patch: Patch) -> HookStatus:
    """Check one patch: its target as it was before the patch."""
    try:
        function = _resolve(patch.target)
    except (ImportError, AttributeError, ValueError) as error:
        return HookStatus(patch, f"target is missing: {error}")
    return HookStatus(patch, _signature_problem(patch, function))


def require_all() -> None:
    """Stop a half-hooked server.

    Raises
    ------
    HookNotApplied
        Names each target and what is wrong with it.
    """
    broken = [status for status in check_all() if status.problem]
    if broken:
        raise HookNotApplied(f"{len(broken)} hook(s) did not land: {_details(broken)}")


def require_patches() -> None:
    """Stop a scheduler that has replaced what was not as expected, once all its parts are made.

    Raises
    ------
    HookNotApplied
        Names each target and what is wrong with it.
    """
    broken = [status for status in check_patches() if status.problem]
    if broken:
        raise HookNotApplied(f"{len(broken)} patch(es) have no place: {_details(broken)}")


def _details(broken: list[HookStatus]) -> str:
    return "; ".join(f"{status.hook.target}: {status.problem}" for status in broken)
