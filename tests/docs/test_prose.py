# SPDX-License-Identifier: Apache-2.0
"""scripts/check_prose.py: every rule finds its bad examples and nothing in the good ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from check_prose import complaints, load_rules, pages

ROOT = Path(__file__).resolve().parents[2]
RULES, LONGEST = load_rules()


def found(markdown: str) -> list[tuple[int, str]]:
    return [(line, message.split(":")[0]) for line, message in complaints(markdown, RULES, LONGEST)]


@pytest.mark.parametrize(
    ("name", "text"), [(rule.name, text) for rule in RULES for text in rule.bad]
)
def test_a_rule_finds_its_bad_examples(name, text):
    assert name in [found_name for _, found_name in found(text)]


@pytest.mark.parametrize(
    ("name", "text"), [(rule.name, text) for rule in RULES for text in rule.good]
)
def test_a_rule_leaves_its_good_examples_alone(name, text):
    assert name not in [found_name for _, found_name in found(text)]


def test_a_finding_has_its_line_also_across_a_line_break_in_lists_and_in_cells():
    assert found("Fine.\n\nIt is whose\nturn it is.") == [(3, "whose turn")]
    assert found("- one\n- two whose turn\n") == [(2, "whose turn")]
    assert found("| a | b |\n| --- | --- |\n| x | whose turn |\n") == [(3, "whose turn")]
    assert found("A `code span\nof two lines` and then\nwhose turn") == [(3, "whose turn")]


def test_code_and_addresses_are_not_prose():
    assert found("`whose turn`") == []
    assert found("```\nwhose turn\n```\n\n~~~\nwhose turn\n~~~\n") == []
    assert found("Like this:\n\n    whose turn\n\nand so on") == []
    assert found("[the page](whose%20turn.md)") == []
    assert found("[whose turn](page.md)") == [(1, "whose turn")]


def test_a_sentence_may_have_forty_words_and_not_one_more():
    words = " ".join(["Word"] * LONGEST)
    assert found(f"{words}. {words}.") == []
    assert [message for _, message in found(f"{words} more.")] == ["sentence of 41 words, over 40"]


def test_every_page_of_the_site_is_checked_and_no_raw_output():
    names = {page.relative_to(ROOT).as_posix() for page in pages()}
    assert {"README.md", "SECURITY.md", "docs/index.md", "docs/understand/kernel.md"} <= names
    assert not any(name.startswith("docs/results/") for name in names)
