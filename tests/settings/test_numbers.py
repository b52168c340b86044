# SPDX-License-Identifier: Apache-2.0
"""Numbers of tokens as SGLang's command line takes them."""

from __future__ import annotations

import ast
import re

import pytest

from sglang_longflow.settings.numbers import READABLE, as_int


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *((7, 7), ("32768", 32768), (" 12 ", 12), ("-1", -1)),
        *(("1k", 1000), ("25.6k", 25600), ("1M", 10**6), ("2G", 2 * 10**9), ("1T", 10**12)),
        *(("1Ki", 1024), ("3Mi", 3 << 20), ("1Gi", 1 << 30), ("1Ti", 1 << 40)),
        *(("1.5Ki", None), ("1K", None), ("1m", None), ("x", None), ("", None)),
        *((True, None), (1.5, None), (None, None)),
    ],
)
def test_numbers(value, number):
    assert as_int(value) == number


@pytest.mark.sglang
def test_they_are_those_of_sglang():
    from sglang_longflow.server.options import sglang_source

    files = (sglang_source() / "srt/arg_groups/fields").glob("*.py")
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    fields = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)]
    found = {
        node.target.id
        for node in fields
        if re.search(r"type_parser=human_readable_int\b", ast.unparse(node.annotation))
    }
    assert found == set(READABLE)
