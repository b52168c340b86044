# SPDX-License-Identifier: Apache-2.0
"""What a command says while it works: every line with the seconds since the command's start.

One clock for all parts of a command, and a sign of life at least every 15 seconds, so that nobody
has to guess whether a slow machine still works. Work with a known end has bars on a terminal.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TextIO

#: Between two signs of life. It stays below 15 seconds with what is asked for in `ASK_TIMEOUT_S`,
#: and where a busy machine imports a large library meanwhile, which stops all threads for seconds.
SIGN_OF_LIFE_S = 7.0
#: What is told may have to be asked for first.
ASK_TIMEOUT_S = 3.0
#: Looks in that time whether something has been said.
LOOKS = 20


@contextlib.contextmanager
def every(seconds: float, call: Callable[[], object]) -> Iterator[None]:
    """Call `call` every `seconds` seconds, in another thread, while the block runs."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            call()

    thread = threading.Thread(target=repeat, name="sign-of-life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(ASK_TIMEOUT_S)


def process_start() -> float:
    """When this process started, by the clock of ``/proc/uptime``."""
    # Behind the name, which may have spaces in it; field 22 of all, in ticks.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


class Progress:
    """Lines with the time since `start`, by the clock of ``/proc/uptime``; None: the process's."""

    def __init__(self, start: float | None = None, out: TextIO | None = None):
        self.start = process_start() if start is None else start
        self._out = out
        self._lock = threading.Lock()
        self._said = time.monotonic()
        self._last = "starting"
        self._texts: list[Callable[[], str]] = []

    def adopt(self, start: str | None) -> None:
        """Count from the `start` that an outer command handed on in LONGFLOW_CLOCK."""
        found = start_from(start)
        self.start = self.start if found is None else found

    def elapsed_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.start

    def say(self, text: str) -> None:
        """Print a line now."""
        self._last = text.strip()
        self._print(text)

    def _print(self, text: str) -> None:
        with self._lock:
            self._said = time.monotonic()
            print(f"[{self.elapsed_s():4.0f}s] {text}", file=self._out, flush=True)

    @contextlib.contextmanager
    def sign_of_life(
        self, text: Callable[[], str] | None = None, every_s: float = SIGN_OF_LIFE_S
    ) -> Iterator[None]:
        """Say `text()` whenever nothing has been said for `every_s` while the block runs.

        Without a text it is the last line again, without one from it nothing at all. Of blocks in
        blocks the innermost speaks.
        """
        is_first = not self._texts
        self._texts.append(text or (lambda: f"  ... {self._last}"))
        try:
            with every(every_s / LOOKS, lambda: self._look(every_s)) if is_first else nullcontext():
                yield
        finally:
            self._texts.pop()

    def _look(self, every_s: float) -> None:
        if time.monotonic() - self._said < every_s:
            return
        asked = self._texts[-1]
        line = asked()
        if self._texts and self._texts[-1] is asked:  # else its block has ended meanwhile
            if line:
                self._print(line)
            else:
                self._said = time.monotonic()


@functools.cache
def shared() -> Progress:
    """The one of this process's command."""
    return Progress()


class Bars(contextlib.AbstractContextManager["Bars"]):
    """Work with a known end: a bar for each part on a terminal, lines of `shared` elsewhere.

    Parameters
    ----------
    parts : sequence of (str, int)
        Text and total of each.
    line_every_s : float
        Least time between two lines.
    """

    def __init__(self, parts: Sequence[tuple[str, int]], line_every_s: float = 0.0):
        self._line_every_s, self._due = line_every_s, 0.0
        self._bars = None
        if sys.stdout.isatty():
            from rich import progress as rich

            left, right = (
                rich.TextColumn(text) for text in ("  {task.description}", "{task.fields[end]}")
            )
            self._bars = rich.Progress(left, rich.BarColumn(), right)
            self._tasks = [self._bars.add_task(text, total=n, end="") for text, n in parts]

    def show(self, number: int, done: int, text: str, end: str = "") -> None:
        """Move a bar, with what stands before and behind it; without a terminal nothing."""
        if self._bars is not None:
            self._bars.update(self._tasks[number], completed=done, description=text, end=end)

    def say(self, line: str, now: bool = False) -> None:
        """Say a line where there are no bars, unless one was said just before (`now`: anyway)."""
        moment = time.monotonic()
        if self._bars is None and (now or moment >= self._due):
            self._due = moment + self._line_every_s
            shared().say(line)

    def hold(self) -> None:
        """No line for `line_every_s` from now."""
        self._due = time.monotonic() + self._line_every_s

    def __enter__(self) -> Bars:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bars is not None:
            self._bars.stop()


def start_from(text: str | None) -> float | None:
    """The start that an outer command handed on, such as a makefile; None if it did not.

    What is no time since this machine's start is none of ours.
    """
    try:
        start = float(text or "")
    except ValueError:
        return None
    return start if 0 <= start <= time.clock_gettime(time.CLOCK_BOOTTIME) else None
