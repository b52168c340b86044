# SPDX-License-Identifier: Apache-2.0
"""The tables of bench and eval: no number is ever cut off."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

from sglang_longflow.measure.table import print_table

NAMES = [f"column {letter}" for letter in "abcdefghijk"]
ROW = ["longflow-novel", "1,600", *(f"{1234.5 + n:,.1f}" for n in range(11))]


@pytest.mark.parametrize("columns", ["40", "80", "300"])
def test_in_a_log_every_number_is_whole_on_one_line(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    print_table("A title", NAMES, [ROW, ROW])
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if "longflow-novel" in line]
    assert len(rows) == 2 and all(text in row for row in rows for text in ROW)
    assert any(all(name in line for name in ("policy", "budget", *NAMES)) for line in lines)


@pytest.mark.parametrize("columns", [40, 70, 80, 300])
def test_on_a_terminal_no_line_is_wider_and_each_number_stands_beside_its_policy(
    monkeypatch, capsys, columns
):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setenv("NO_COLOR", "1")  # leaves styles such as bold
    monkeypatch.setenv("TERM", "xterm")
    print_table("A title", NAMES, [ROW])
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert columns < 45 or max(map(len, lines)) <= columns
    rows = [line for line in lines if "longflow-novel" in line]
    assert all("1,600" in row for row in rows)
    heads = [line for line in lines if "policy" in line]
    assert len(heads) == len(rows) == {40: 11, 70: 4, 80: 3, 300: 1}[columns]
    for name, number in zip(NAMES, ROW[2:], strict=True):
        (place,) = [i for i, head in enumerate(heads) if name in head]
        assert number in rows[place]


def test_a_terminal_that_is_too_narrow_for_one_column_still_gets_whole_numbers(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setenv("TERM", "xterm")
    print_table("A title", NAMES[:2], [ROW[:4]])
    text = capsys.readouterr().out
    assert "1,234.5" in text and "1,235.5" in text and "…" not in text
