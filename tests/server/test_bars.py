# SPDX-License-Identifier: Apache-2.0
"""Progress of work with a known end: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from sglang_longflow.server.progress import Bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_where_there_is_no_terminal(capsys):
    with Bars([("a", 10)], line_every_s=60) as bars:
        bars.show(0, 3, "not seen")
        bars.say("first")
        bars.say("too soon")
        bars.say("the last one", now=True)
    words = [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines()]
    assert words == ["first", "the last one"]


def test_every_line_where_no_time_is_named(capsys):
    bars = Bars([("a", 10)])
    bars.say("one")
    bars.say("two")
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_held_back_at_first(capsys):
    bars = Bars([("a", 10)], line_every_s=60)
    bars.hold()
    bars.say("too soon")
    assert capsys.readouterr().out == ""


def test_bars_on_a_terminal(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm-256color")
    with Bars([("first", 10), ("second", 4)]) as bars:
        bars.say("no line", now=True)
        bars.show(0, 7, "seven of ten", "7/10")
        bars.show(1, 4, "done")
    text = screen.getvalue()
    assert "seven of ten" in text and "7/10" in text and "done" in text
    assert "no line" not in text


def test_the_cursor_comes_back_after_an_error(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    with pytest.raises(ValueError, match="x"), Bars([("first", 10)]):
        raise ValueError("x")
    assert screen.getvalue().rstrip().endswith("\x1b[?25h")
