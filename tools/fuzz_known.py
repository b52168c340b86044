# SPDX-License-Identifier: Apache-2.0
"""Requests known to end a server: left out, but for ``--with-known``.

A name here is a debt, not an excuse: docs/understand/fuzzing.md has each with its cause.
"""

from __future__ import annotations

from collections.abc import Callable

from fuzz_call import Call, Limits

KNOWN: dict[str, Callable[[Call, Limits], bool]] = {}


def is_known(call: Call, limits: Limits) -> str | None:
    """The name of a known fault that this call asks for, or None."""
    return next((name for name, asks in KNOWN.items() if asks(call, limits)), None)
