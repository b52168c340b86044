# SPDX-License-Identifier: Apache-2.0
"""The tables of bench and eval: no number is ever cut off."""

from __future__ import annotations

import pytest

from sglang_longflow.measure.table import print_table

ROW = ["longflow-novel", "1,600", *(f"{1234.5 + n:,.1f}" for n in range(11))]


@pytest.mark.parametrize("columns", ["40", "80", "300"])
def test_every_number_is_whole_on_one_line(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    names = [f"a column {n}" for n in range(11)]
    print_table("A title", names, [ROW, ROW])
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if "longflow-novel" in line]
    assert len(rows) == 2 and all(text in row for row in rows for text in ROW)
    assert any(all(name in line for name in ("policy", "budget", *names)) for line in lines)
