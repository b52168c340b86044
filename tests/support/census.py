# SPDX-License-Identifier: Apache-2.0
"""A scheduler that counts its own Python objects and bytes when it is asked while it idles."""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import os
import time
from collections import Counter
from pathlib import Path

import psutil


def census() -> dict:
    """{"objects": {type: count}, "bytes": resident} of this process, after a collection.

    Resident bytes are what is left once the C library has given back what it kept for later.
    """
    gc.collect()
    objects = Counter(f"{type(o).__module__}.{type(o).__qualname__}" for o in gc.get_objects())
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return {"objects": dict(objects), "bytes": psutil.Process().memory_info().rss}


def ask(file: Path, timeout_s: float = 300) -> dict:
    """The scheduler's census; `file` is its LONGFLOW_CENSUS_FILE."""
    file.unlink(missing_ok=True)
    asked, deadline = file.with_suffix(".ask"), time.monotonic() + timeout_s
    asked.touch()
    while not file.exists():
        assert time.monotonic() < deadline, "the scheduler did not become idle"
        time.sleep(0.05)
    return json.loads(file.read_text())


def run_scheduler_process(*args, **kwargs):
    """SGLang's entry point of a scheduler process, with the count on request."""
    from sglang.srt.managers import scheduler as module
    from sglang.srt.plugins import load_plugins

    load_plugins()
    file = Path(os.environ["LONGFLOW_CENSUS_FILE"])
    stock_idle = module.Scheduler.on_idle

    @functools.wraps(stock_idle)  # hooks.verify looks through wrappers
    def idle(self):
        stock_idle(self)
        asked = file.with_suffix(".ask")
        if asked.exists() and self.is_fully_idle():
            asked.unlink()
            temporary = file.with_suffix(".tmp")
            temporary.write_text(json.dumps(census()))
            temporary.replace(file)

    module.Scheduler.on_idle = idle
    return module.run_scheduler_process(*args, **kwargs)
