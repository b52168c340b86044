# SPDX-License-Identifier: Apache-2.0
"""The requests of `longflow top`: order, short ids, bars, and what a narrow terminal leaves out."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from sglang_longflow.monitor import terminal
from sglang_longflow.monitor.request_order import SORTS, in_order, short_ids
from sglang_longflow.monitor.request_table import MAX_BAR, request_bar, requests_table

BARS = "# held - saved"


def row(rid: str, seq_len: int, kv_len: int, kv_budget: int) -> dict:
    return dict(
        rid=rid, seq_len=seq_len, kv_len=kv_len, kv_budget=kv_budget, kv_policy="longflow-novel",
        own_tokens=kv_len, tree_tokens=0,
    )  # fmt: skip


ROWS = [
    row("0123456789abcdef0123456789abcdef", 2_000, 400, 400),
    row("0123456789abcdef0123456789abcdee", 900, 400, 400),
    row("whole", 1_000, 1_000, 0),
    row("young", 100, 100, 800),
]


def lines_at(width: int, most: int = 10, sort: str = "arrival") -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width)
    console.print(requests_table({"requests": ROWS}, most, sort, width))
    return [line.rstrip() for line in out.getvalue().splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("sort", "lengths"),
    [
        ("arrival", [2_000, 900, 1_000, 100]),
        ("saved", [2_000, 900, 1_000, 100]),
        ("logical", [2_000, 1_000, 900, 100]),
        ("resident", [1_000, 2_000, 900, 100]),
        ("budget", [100, 2_000, 900, 1_000]),
        ("id", [900, 2_000, 1_000, 100]),
    ],
)
def test_orders(sort, lengths):
    assert [found["seq_len"] for found in in_order(ROWS, sort)] == lengths


def test_every_order_has_a_key_of_its_own_and_none_is_that_which_quits():
    keys = [key for key, _ in SORTS.values()]
    assert len(set(keys)) == len(keys) and "q" not in keys
    assert all(name.startswith(key) for name, (key, _) in SORTS.items())


def test_ids_are_short_and_still_tell_requests_apart():
    assert short_ids([row("a" * 32, 1, 1, 1), row("b" * 32, 1, 1, 1)]) == ["aaaaaaaa…", "bbbbbbbb…"]
    first, second, *others = short_ids(ROWS)
    assert (first, second) == ("…89abcdef", "…89abcdee")
    assert others == ["whole", "young"]
    names = [row(f"summary-of-page-{n:03}-of-the-book", 1, 1, 1) for n in range(3)]
    assert short_ids(names)[2] == "…2-of-the-book"
    assert short_ids([row("summary-0041", 1, 1, 1)]) == ["summary-0041"]
    assert short_ids([]) == [] and len(short_ids([row("a" * 32, 1, 1, 1)] * 2)[0]) == 9
    assert short_ids([row("e\x1b[2J" + "x" * 20, 1, 1, 1)]) == ["e?[2Jxxx…"]


def test_a_bar_is_what_is_held_then_what_is_not():
    assert request_bar(ROWS[0], 20, 2_000).plain == "####" + "-" * 16
    assert request_bar(ROWS[2], 20, 2_000).plain == "F" * 10
    assert request_bar(ROWS[3], 20, 2_000).plain == "#"
    assert request_bar(row("new", 0, 0, 400), 20, 2_000).plain == "#"


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (100, ["request", "logical", "resident", "budget", "saved", "policy", BARS]),
        (70, ["request", "logical", "resident", "budget", "saved", BARS]),
        (56, ["request", "logical", "resident", "saved", BARS]),
        (44, ["request", "logical", "saved", BARS]),
        (34, ["request", "logical", "saved"]),
    ],
)
def test_columns_are_left_out_and_never_cut(width, columns):
    head, _, *rows = lines_at(width)
    assert re.split(r"\s{2,}", head.strip()) == columns
    assert max(map(len, rows)) <= width
    for line, found in zip(rows, ROWS, strict=True):
        assert f" {found['seq_len']:,} " in line and "…" not in line[12:]
    if BARS in columns:
        assert MAX_BAR >= rows[0].count("#") + rows[0].count("-") - 1 >= 10


def test_more_requests_than_lines():
    *rows, last = lines_at(120, most=1, sort="logical")
    assert last.strip() == "and 3 more" and "2,000" in rows[-1]


@pytest.mark.parametrize(
    ("values", "width", "blocks"),
    [
        ([], 10, ""),
        ([5.0], 10, ""),
        ([0.0, 0.0], 10, ""),
        ([0.0, 50.0, 100.0], 10, "▁▅█"),
        ([100.0, 0.0, 50.0, 25.0], 2, "█▅"),
        ([1.0, 2.0], 0, ""),
    ],
)
def test_what_a_server_did_so_far(values, width, blocks):
    assert terminal.sparkline(values, width) == blocks
