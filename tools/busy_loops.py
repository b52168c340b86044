# SPDX-License-Identifier: Apache-2.0
"""Other programs that want the CPU, for what must work on a machine with little to spare."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator


def pin(core: int | None) -> None:
    """Keep this process, and those that it starts, on one core; None leaves it as it is."""
    if core is not None:
        os.sched_setaffinity(0, {core})


@contextlib.contextmanager
def busy_loops(count: int, core: int | None = None) -> Iterator[None]:
    """`count` programs that take all the time they get, on that core alone if there is one."""
    command = [sys.executable, "-S", "-c", "while True: pass"]
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            loop = subprocess.Popen(command, preexec_fn=lambda: pin(core))
            stack.callback(loop.wait)
            stack.callback(loop.kill)
        yield
