# SPDX-License-Identifier: Apache-2.0
"""A row of the manifest: one function that is wrapped (`Hook`) or replaced (`Patch`)."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Fails(Enum):
    """What a failure of a hook itself costs; `hooks.guard` sees to it."""

    START = "the start: nothing comes up half on"
    ANSWER = "the one HTTP request"
    REQUEST = "the request, which ends with an error"
    ROWS = "the requests whose rows it cannot read"  # `guard.blaming` around each
    WATCH = "what it reports"
    GUARD = "what SGLang could not take"  # it contains the failures of SGLang's own function


@dataclass(frozen=True)
class Hook:
    """One wrapped function of SGLang.

    Attributes
    ----------
    target : str
        Dotted path in SGLang.
    kind : str
        "before", "after" or "around"; what replaces something is a `Patch`.
    handler_path : str
        ``module:function`` of ours under ``sglang_longflow.hooks``.
    parameters : tuple of str
        Parameter names of the target in SGLang 0.5.23; another signature stops the start-up.
    why : str
        What would be wrong without it.
    remove_when : str
        What SGLang would have to offer.
    fails : Fails
    blames : str
        The parameter that is the request, for ``Fails.REQUEST``.
    first_parameters_only : bool
        `parameters` are the first of many (a dataclass's __init__).
    """

    target: str
    kind: str
    handler_path: str
    parameters: tuple[str, ...]
    why: str
    remove_when: str
    fails: Fails
    blames: str = ""
    first_parameters_only: bool = False

    def handler(self) -> Callable[..., Any]:
        """What is registered with SGLang: the handler with its failures contained."""
        return _guarded_handler(self)


@dataclass(frozen=True)
class Patch:
    """One function of another library that the package replaces by itself.

    SGLang's registry wraps functions of SGLang for good, in every process. What must be replaced
    elsewhere, on one object, or for a while, is a row of this kind.

    Attributes
    ----------
    target : str
        Dotted path of the function.
    made_by : str
        ``module:name`` under ``sglang_longflow`` of what puts the replacement in place.
    parameters : tuple of str
        Names of the target's first parameters; others stop the start-up.
    why, remove_when : str
        As for a `Hook`.
    device : str
        "cpu" or "gpu" where it is made on one of them alone; else empty.
    """

    target: str
    made_by: str
    parameters: tuple[str, ...]
    why: str
    remove_when: str
    device: str = ""

    @property
    def first_parameters_only(self) -> bool:
        return True


@functools.cache
def _guarded_handler(hook: Hook) -> Callable[..., Any]:
    from sglang_longflow.hooks.guard import guarded

    module, name = hook.handler_path.split(":")
    handler = getattr(importlib.import_module(f"sglang_longflow.hooks.{module}"), name)
    blamed = hook.parameters.index(hook.blames) if hook.blames else None
    return guarded(handler, hook.kind, hook.fails, blamed)
