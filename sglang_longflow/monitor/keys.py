# SPDX-License-Identifier: Apache-2.0
"""Single keys from a terminal, while something else is waited for."""

from __future__ import annotations

import contextlib
import select
import sys
import time
from collections.abc import Callable, Iterator

WaitForKey = Callable[[float], str]


@contextlib.contextmanager
def key_reader() -> Iterator[WaitForKey]:
    """A function that waits for so many seconds, and returns early with a key that was pressed.

    Where standard input is no terminal it only waits. The terminal is set back at the end; Ctrl+C
    stays what it is.
    """
    if not sys.stdin.isatty():
        yield _only_wait
        return
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield lambda seconds: _key(fd, seconds)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _only_wait(seconds: float) -> str:
    time.sleep(max(0.0, seconds))
    return ""


def _key(fd: int, seconds: float) -> str:
    import os

    ready, _, _ = select.select([fd], [], [], max(0.0, seconds))
    if not ready:
        return ""
    pressed = os.read(fd, 64)
    if not pressed:  # the terminal has gone away
        time.sleep(max(0.0, seconds))
    # An arrow is several bytes that begin with escape: no key of ours.
    return pressed.decode(errors="replace") if len(pressed) == 1 else ""
