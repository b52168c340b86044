# SPDX-License-Identifier: Apache-2.0
"""Triton's interpreter prepares its language once a launch, not again in each call of a helper.

In a kernel that is made of `@triton.jit` helpers the repetitions are half of the time: each looks
through every member of `triton.language` for functions to replace, and finds them replaced.
"""

from __future__ import annotations

import functools
import inspect
from types import ModuleType


def install() -> None:
    """Idempotent; fails loudly on a Triton whose interpreter is made otherwise."""
    from triton.runtime import interpreter

    prepare = interpreter._patch_lang
    if hasattr(prepare, "prepared"):
        return
    languages = (interpreter.tl, interpreter.tl.core)
    prepared: set[ModuleType] = set()

    class Scope(interpreter._LangPatchScope):
        def restore(self) -> None:  # called at the end of a launch alone
            super().restore()
            prepared.clear()

    @functools.cache
    def seen_by(fn) -> frozenset[ModuleType]:
        values = [value for value in fn.__globals__.values() if inspect.ismodule(value)]
        return frozenset(value for value in values if value in languages)

    @functools.wraps(prepare)
    def once_a_launch(fn):
        scope = Scope()
        seen = seen_by(fn)
        if not seen or not seen <= prepared:  # without one the original refuses
            scope._changes = prepare(fn)._changes
            prepared.update(seen)
        return scope

    once_a_launch.prepared = prepared
    interpreter._patch_lang = once_a_launch
