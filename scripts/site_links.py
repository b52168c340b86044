# SPDX-License-Identifier: Apache-2.0
"""What mkdocs does with the pages of docs/ beside building them (mkdocs.yml names this file).

Links to files outside docs/ work on GitHub as they are written; on the site they become links to
the repository. The front page takes the part of README.md between two comments, so that there is
one first screen to keep true.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README_PART = re.compile(r"<!-- site: begin -->\n(.*)<!-- site: end -->", re.DOTALL)
PLACE = "<!-- README.md: the first screen -->"
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")

log = logging.getLogger("mkdocs.hooks.site_links")


def first_screen(readme: str) -> str:
    """The marked part of README.md, with links as they are from docs/."""
    part = README_PART.search(readme)
    if part is None:
        raise ValueError("README.md: no part between the comments `site: begin` and `site: end`")
    return LINK.sub(lambda m: m[1] + _from_docs(m[2]) + (m[3] or "") + m[4], part[1])


def _from_docs(target: str) -> str:
    if "://" in target:
        return target
    return os.path.relpath(ROOT / target, ROOT / "docs")


def to_repository(markdown: str, page: Path, repository: str) -> str:
    """Links out of docs/ as links to the repository; warns of files that are not there.

    ``page`` is the page's path below docs/, ``repository`` the address of the repository.
    """

    def link(match: re.Match[str]) -> str:
        target = match[2]
        if "://" in target or target.startswith(("mailto:", "/")):
            return match[0]
        file = Path(os.path.normpath(ROOT / "docs" / page.parent / target))
        if file.is_relative_to(ROOT / "docs"):
            if file.is_dir():
                return _blob(file, repository, match)
            return match[0]
        if not file.exists():
            log.warning("%s: link to %s, which is not in the repository", page, target)
            return match[0]
        return _blob(file, repository, match)

    return LINK.sub(link, markdown)


def _blob(file: Path, repository: str, match: re.Match[str]) -> str:
    kind = "tree" if file.is_dir() else "blob"
    address = f"{repository.rstrip('/')}/{kind}/main/{file.relative_to(ROOT).as_posix()}"
    return f"{match[1]}{address}{match[3] or ''}{match[4]}"


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """mkdocs's event: a page's text before it is rendered."""
    if PLACE in markdown:
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        markdown = markdown.replace(PLACE, first_screen(readme))
    return to_repository(markdown, Path(page.file.src_uri), config["repo_url"])
