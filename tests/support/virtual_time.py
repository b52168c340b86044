# SPDX-License-Identifier: Apache-2.0
"""An asyncio loop whose clock jumps to the next timer: what takes time by itself takes none."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

Found = TypeVar("Found")


class _Jumping(selectors.DefaultSelector):
    """Moves `now_s` on instead of waiting."""

    now_s = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("nothing is due: these tasks wait for ever")
        self.now_s += max(0.0, timeout)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = _Jumping()
        super().__init__(self.jumping)

    def time(self) -> float:
        self.jumping.now_s += 1e-6  # as on any clock, later is later
        return self.jumping.now_s


def run(monkeypatch: Any, main: Callable[[], Awaitable[Found]], *modules: ModuleType) -> Found:
    """What `main` returns; `time.monotonic` and `time.time` of `modules` are the loop's.

    Nothing but timers and each other may be waited for: no thread, no socket.
    """
    loop = _Loop()
    clock = SimpleNamespace(monotonic=loop.time, time=lambda: 1_800_000_000 + loop.time())
    with monkeypatch.context() as patch, asyncio.Runner(loop_factory=lambda: loop) as runner:
        for module in modules:
            patch.setattr(module, "time", clock)
        return runner.run(main())
