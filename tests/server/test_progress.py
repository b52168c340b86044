# SPDX-License-Identifier: Apache-2.0
"""One clock, and a sign of life in time."""

from __future__ import annotations

import io
import subprocess
import sys
import time

import pytest

from sglang_longflow.server.progress import (
    ASK_TIMEOUT_S,
    SIGN_OF_LIFE_S,
    Progress,
    every,
    process_start,
    start_from,
)


def boot_clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def test_times_are_counted_from_the_start_of_the_process():
    code = (
        "import time; time.sleep(1.2)\n"
        "from sglang_longflow.server.progress import shared\n"
        "assert shared() is shared()\nshared().say('x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 <= int(done.stdout[1:5]) < 60 and done.stdout.endswith("s] x\n")
    assert 0 < process_start() < boot_clock()


def test_an_outer_command_hands_its_start_on(capsys):
    progress = Progress()
    progress.adopt(str(boot_clock() - 164))
    progress.say("ready")
    assert capsys.readouterr().out == "[ 164s] ready\n"
    for nonsense in (None, "", "soon", "-1", "1e99", "nan"):
        assert start_from(nonsense) is None
        progress.adopt(nonsense)
    assert 163 < progress.elapsed_s() < 170


def test_a_sign_of_life_comes_in_time():
    assert SIGN_OF_LIFE_S * 1.05 + ASK_TIMEOUT_S < 11  # 4 s are for threads that are held up


def wait_for(condition, timeout_s=20.0):
    """The lines come from a thread, which a busy machine holds up."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_silence_is_broken_by_the_innermost_block():
    out = io.StringIO()
    progress = Progress(out=out)

    def said(word):
        return [line.partition("] ")[2] for line in out.getvalue().splitlines()].count(word)

    progress.say("  asking")
    with progress.sign_of_life(every_s=0.2):
        wait_for(lambda: said("  ... asking") >= 1)
        with progress.sign_of_life(lambda: "inner"):
            outer = said("  ... asking")
            wait_for(lambda: said("inner") >= 2)
            assert said("  ... asking") == outer
        asked = []
        before = out.getvalue()
        with progress.sign_of_life(lambda: asked.append(1) or ""):  # has bars of its own
            wait_for(lambda: len(asked) >= 2)
            assert out.getvalue() == before
    quiet = out.getvalue()
    time.sleep(0.5)
    assert out.getvalue() == quiet and quiet.count("] ") == len(quiet.splitlines())


def test_who_speaks_needs_no_sign_of_life():
    out = io.StringIO()
    progress = Progress(out=out)
    with progress.sign_of_life(lambda: "sign", every_s=1.0):
        for _ in range(30):
            progress.say("work")
            time.sleep(0.05)
    assert "sign" not in out.getvalue()


def test_every_ends_with_its_block_also_by_an_error():
    calls = []
    with pytest.raises(ValueError, match="x"), every(0.05, lambda: calls.append(1)):
        wait_for(lambda: len(calls) >= 2)
        raise ValueError("x")
    found = len(calls)
    time.sleep(0.15)
    assert len(calls) == found
