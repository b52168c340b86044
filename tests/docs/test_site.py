# SPDX-License-Identifier: Apache-2.0
"""The site: each page has its place in the navigation; links out of docs/ go to the repository."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from site_links import PLACE, first_screen, to_repository

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "https://example.com/project"


def test_every_page_has_one_place_in_the_navigation():
    """`make docs` refuses a page without one, too; this is the same without the site's tools."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    placed = re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)
    docs = ROOT / "docs"
    pages = {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")}
    assert sorted(placed) == sorted(page for page in pages if not page.startswith("results/"))


def test_the_first_screen_is_that_of_the_readme_with_links_from_docs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    screen = first_screen(readme)
    assert "](models.md)" in screen and "](docs/" not in screen and "](images/" in screen
    assert PLACE in (ROOT / "docs/index.md").read_text(encoding="utf-8")


def test_links_out_of_docs_lead_to_the_repository_and_others_stay():
    page = Path("operate/upgrading.md")
    text = "[a](../../CHANGELOG.md#x) [b](../index.md) [c](https://example.org/x) [d](../../deploy)"
    assert to_repository(text, page, REPOSITORY) == (
        f"[a]({REPOSITORY}/blob/main/CHANGELOG.md#x) [b](../index.md) [c](https://example.org/x) "
        f"[d]({REPOSITORY}/tree/main/deploy)"
    )


def test_a_file_that_is_not_there_is_a_warning_which_ends_a_strict_build(caplog):
    with caplog.at_level(logging.WARNING):
        to_repository("[a](../nope.txt)", Path("index.md"), REPOSITORY)
    assert "nope.txt" in caplog.text
