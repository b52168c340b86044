# SPDX-License-Identifier: Apache-2.0
"""Waiting for what another thread or process does, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


#: Against a wait for ever, not a bound on how long a machine may take.
LIMIT_S = 300.0


def until(check: Callable[[], Found], timeout_s: float = LIMIT_S) -> Found:
    """What `check` returns once it is true; AssertionError after `timeout_s`.

    `check` is all that is asserted next: two questions may get two answers.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := check()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)
    return found
