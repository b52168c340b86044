# SPDX-License-Identifier: Apache-2.0
"""The console's files: all of them served, nothing from outside, nothing that the policy blocks."""

import re
import tomllib
from pathlib import Path

from sglang_longflow.monitor.page import CONTENT_SECURITY_POLICY, PAGE, load_files

ROOT = Path(__file__).parents[2]
FILES = load_files()
TEXT = {name: content.decode() for name, (content, _) in FILES.items()}


def test_every_file_that_is_named_is_there():
    named = {name for text in TEXT.values() for name in re.findall(r"static/([\w.-]+)", text)}
    named |= {name for text in TEXT.values() for name in re.findall(r'from "\./([\w.-]+)"', text)}
    assert named == set(FILES) - {PAGE}


def test_content_types():
    assert {name: kind for name, (_, kind) in FILES.items() if name.endswith("js")} == {
        name: "text/javascript; charset=utf-8" for name in FILES if name.endswith("js")
    }
    assert FILES[PAGE][1] == "text/html; charset=utf-8"


def test_nothing_comes_from_outside():
    for name, text in TEXT.items():
        loaded = re.sub(r'<a href="[^"]*"', "", text)  # a link is followed, not loaded
        found = [
            url for url in re.findall(r"(?:https?:)?//[\w.-]+\.\w+", loaded) if "w3.org" not in url
        ]
        assert found == [], name


def test_links_lead_to_this_server_and_to_the_documentation():
    """The page is at /longflow, so a relative link is one of the server's own routes."""
    links = re.findall(r'<a href="([^"#]+)"', TEXT[PAGE])
    assert links[:2] == ["docs", "metrics"]
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pages = pyproject["project"]["urls"]["Documentation"].removesuffix("index.md")
    assert [link for link in links[2:] if not link.startswith(pages)] == []
    for link in links[2:]:
        assert (ROOT / "docs" / link.removeprefix(pages)).is_file()


def test_nothing_is_inline():
    """The policy allows no inline script and style; text never becomes markup."""
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'none'")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)", TEXT[PAGE])
    for name, text in TEXT.items():
        if name.endswith("js"):
            words = r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function"
            assert not re.search(words, text), name
            assert 'setAttribute("style"' not in text


def test_the_key_is_kept_in_the_tab_only():
    assert "sessionStorage" in TEXT["console.js"]
    kept = [name for name, text in TEXT.items() if "localStorage" in text]
    assert kept == ["theme.js"]


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_both_themes():
    """WCAG AA: 4.5 for text, 3 for what a picture is made of."""
    blocks = re.findall(r"\{\s*color-scheme: (\w+);(.*?)\}", TEXT["console.css"], re.S)
    assert [theme for theme, _ in blocks] == ["light", "dark", "dark"]
    assert re.sub(r"\s", "", blocks[1][1]) == re.sub(r"\s", "", blocks[2][1])
    for theme, block in blocks:
        colour = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
        for text in ("ink", "quiet", "bad", "accent"):
            assert _contrast(colour[text], colour["panel"]) >= 4.5, (theme, text)
            assert text == "bad" or _contrast(colour[text], colour["ground"]) >= 4.5, (theme, text)
        for text in ("bad", "wait"):
            assert _contrast(colour[text], colour[f"{text}-ground"]) >= 4.5, (theme, text)
            for quiet in ("ink", "quiet"):  # the header's
                assert _contrast(colour[quiet], colour[f"{text}-ground"]) >= 4.5, (theme, text)
        for part in ("budgeted", "full", "prefill", "held"):
            assert _contrast(colour[part], colour["panel"]) >= 3, (theme, part)
            assert _contrast(colour[part], colour["free"]) >= 3, (theme, part)
