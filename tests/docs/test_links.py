# SPDX-License-Identifier: Apache-2.0
"""Every relative link and anchor of README.md and docs/ leads somewhere in the repository."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from check_prose import pages

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def without_code(markdown: str) -> str:
    return re.sub(r"`[^`\n]+`", "", FENCE.sub("", markdown))


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and the site make them."""
    found: set[str] = set()
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = sum(1 for other in found if re.fullmatch(re.escape(name) + r"(-\d+)?", other))
        found.add(f"{name}-{count}" if count else name)
    return found


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    broken = []
    for image_or_link in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        target = image_or_link[0] or image_or_link[1]
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_a_broken_anchor_would_be_seen():
    structure = anchors(ROOT / "docs/understand/structure.md")
    assert "a-requests-life" in structure and "no-such-heading" not in structure


def test_alerts_lead_to_their_sections():
    rules = (ROOT / "deploy/monitoring/rules.yaml").read_text(encoding="utf-8")
    targets = re.findall(r"runbook: (\S+)#(\S+)", rules)
    assert len(targets) >= 15
    assert [t for t in targets if t[1] not in anchors(ROOT / t[0])] == []


def test_every_example_has_a_line_in_the_page_for_clients():
    page = (ROOT / "docs/reference/clients.md").read_text(encoding="utf-8")
    examples = [file.name for file in sorted((ROOT / "examples").glob("*.py"))]
    assert len(examples) >= 5
    assert [name for name in examples if f"(../../examples/{name})" not in page] == []
