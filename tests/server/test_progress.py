# SPDX-License-Identifier: Apache-2.0
"""One clock, and a sign of life in time."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import time

import pytest

from sglang_longflow.server import progress as module
from sglang_longflow.server.progress import (
    ASK_TIMEOUT_S,
    SIGN_OF_LIFE_S,
    Progress,
    every,
    process_start,
    start_from,
)
from waiting import until

#: The lines come from a thread, which a busy machine holds up.
WAIT_S = 300.0


def boot_clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def test_times_are_counted_from_the_start_of_the_process():
    code = (
        "import time; time.sleep(1.2)\n"
        "from sglang_longflow.server.progress import shared\n"
        "assert shared() is shared()\nshared().say('x')"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 <= int(done.stdout[1:5]) <= time.monotonic() - began + 1
    assert done.stdout.endswith("s] x\n")
    assert 0 < process_start() < boot_clock()


def test_an_outer_command_hands_its_start_on(capsys, monkeypatch):
    progress = Progress()
    now = boot_clock()
    monkeypatch.setattr(module.time, "clock_gettime", lambda clock: now)
    progress.adopt(str(now - 164))
    progress.say("ready")
    assert capsys.readouterr().out == "[ 164s] ready\n"
    for nonsense in (None, "", "soon", "-1", "1e99", "nan"):
        assert start_from(nonsense) is None
        progress.adopt(nonsense)
    assert progress.elapsed_s() == pytest.approx(164)


def test_a_sign_of_life_comes_in_time():
    assert SIGN_OF_LIFE_S * 1.05 + ASK_TIMEOUT_S < 11  # 4 s are for threads that are held up


def test_silence_is_broken_by_the_innermost_block():
    out, every_s = io.StringIO(), 0.4
    progress = Progress(out=out)

    def words():
        return [line.partition("] ")[2] for line in out.getvalue().splitlines()]

    progress.say("  asking")
    with progress.sign_of_life(every_s=every_s):
        until(lambda: "  ... asking" in words(), WAIT_S)
        began = time.monotonic()
        with progress.sign_of_life(lambda: "inner"):
            until(lambda: "inner" in words(), WAIT_S)  # what the outer one began to say is said
            outer = words().count("  ... asking")
            until(lambda: words().count("inner") >= 3, WAIT_S)
            assert words().count("  ... asking") == outer
        asked = []
        with progress.sign_of_life(lambda: asked.append(1) or ""):  # has bars of its own
            until(lambda: asked, WAIT_S)
            said = words().count("inner")
            assert said <= 1 + (time.monotonic() - began) / every_s
            until(lambda: len(asked) >= 3, WAIT_S)
    quiet = words()
    assert quiet[0] == "  asking" and set(quiet[1:]) == {"  ... asking", "inner"}
    assert quiet.count("inner") == said and quiet[-1] == "inner"
    time.sleep(0.6)
    assert words() == quiet


def test_who_speaks_needs_no_sign_of_life(monkeypatch):
    now, looks = 1000.0, []

    def by_hand(seconds, call):
        looks.append(call)
        return contextlib.nullcontext()

    monkeypatch.setattr(module, "every", by_hand)
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    out = io.StringIO()
    progress = Progress(out=out)
    with progress.sign_of_life(lambda: "sign", every_s=1.0):
        (look,) = looks
        for _ in range(30):
            progress.say("work")
            now += 0.99
            look()
        assert "sign" not in out.getvalue()
        now += 0.02
        look()
        assert out.getvalue().endswith("s] sign\n")


def test_every_ends_with_its_block_also_by_an_error():
    calls, began = [], time.monotonic()
    with pytest.raises(ValueError, match="x"), every(0.05, lambda: calls.append(1)):
        until(lambda: len(calls) >= 2, WAIT_S)
        raise ValueError("x")
    found = len(calls)
    assert 2 <= found <= (time.monotonic() - began) / 0.05
    time.sleep(0.15)
    assert len(calls) == found
