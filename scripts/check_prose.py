# SPDX-License-Identifier: Apache-2.0
"""Habits of wording that readers stumble over, in README.md and docs/: one line each, exit 1.

    python scripts/check_prose.py [FILE...]

The rules are scripts/prose_rules.toml. Code, addresses and markup are taken out first, so that
only sentences are judged; a cell of a table counts as a paragraph.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RULES = ROOT / "scripts" / "prose_rules.toml"
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
CODE = "Code"  # stands for a code span: one word, which may begin a sentence
SENTENCE_END = re.compile(r"(?<=[.!?:;])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])")


@dataclass(frozen=True)
class Rule:
    """A pattern that must not occur, what to write instead, and examples of both."""

    name: str
    pattern: re.Pattern[str]
    say: str
    bad: tuple[str, ...]
    good: tuple[str, ...]


@dataclass(frozen=True)
class Paragraph:
    """Text of one block as a reader reads it, and the number of its first line (from 1)."""

    line: int
    text: str


def load_rules(file: Path = RULES) -> tuple[tuple[Rule, ...], int]:
    """The rules, and the number of words from which on a sentence is too long."""
    data = tomllib.loads(file.read_text(encoding="utf-8"))
    rules = tuple(
        Rule(
            name=rule["name"],
            pattern=re.compile(rule["pattern"], re.IGNORECASE | re.MULTILINE),
            say=rule["say"],
            bad=tuple(rule["bad"]),
            good=tuple(rule["good"]),
        )
        for rule in data["rule"]
    )
    return rules, data["longest_sentence_words"]


def _as_one_word(match: re.Match[str]) -> str:
    return CODE + "\n" * match[0].count("\n")


def plain(text: str) -> str:
    """Text without markup: code spans are one word, links their text, comments nothing.

    Line breaks stay, so that a place in the result is a place in the page.
    """
    text = re.sub(r"<!--.*?-->", "", text)
    text = re.sub(r"(`+)(?:(?!\1).)+\1", _as_one_word, text, flags=re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"<https?://[^>]*>|https?://\S+", CODE, text)
    text = re.sub(r"<[^>]+>", "", text)
    return re.sub(r"\*\*|__|(?<!\w)[*_]|[*_](?!\w)", "", text)


def paragraphs(markdown: str) -> Iterator[Paragraph]:
    """The blocks of a page that are prose: paragraphs, list items, headings, cells of tables."""
    start, fence = 0, ""
    block: list[str] = []
    for number, raw in enumerate([*markdown.splitlines(), ""], start=1):
        line = raw.strip()
        if fence:
            fence = "" if line.startswith(fence) and not line.strip(fence[0]) else fence
            continue
        opened = re.match(r"(`{3,}|~{3,})", line)
        table, item = line.startswith("|"), re.match(r"(?:[-*+]|\d+\.)\s+", line)
        breaks = not line or opened or table or item or line.startswith(("#", "<!--"))
        if block and breaks:
            yield Paragraph(start, "\n".join(block))
            block = []
        if opened:
            fence = opened[1]
        elif not line or (raw.startswith("    ") and not block and not item):
            continue  # an indented block is code
        elif table:
            if not re.fullmatch(r"[|:\s-]+", line):
                # A cell may have a `|` of code in it, escaped.
                cells = re.split(r"(?<!\\)\|", plain(line.strip("|")))
                yield from (Paragraph(number, cell.strip()) for cell in cells if cell.strip())
        else:
            if not block:
                start = number
            text = line[item.end() :] if item else line.lstrip("#> ")
            block.append(text)


def complaints(markdown: str, rules: tuple[Rule, ...], longest: int) -> Iterator[tuple[int, str]]:
    """Line number and message for each breach of a rule."""
    for paragraph in paragraphs(markdown):
        text = plain(paragraph.text)
        for rule in rules:
            for match in rule.pattern.finditer(text):
                line = paragraph.line + text.count("\n", 0, match.start())
                found = " ".join(match[0].split())
                yield line, f"{rule.name}: {found!r}; {rule.say}"
        at = 0
        for sentence in SENTENCE_END.split(text):
            words = len(re.findall(r"[\w'%.,-]*\w[\w'%-]*", sentence))
            if words > longest:
                line = paragraph.line + text.count("\n", 0, text.find(sentence, at))
                begin = " ".join(sentence.split()[:6])
                yield line, f"sentence of {words} words, over {longest}: {begin!r} ..."
            at += len(sentence)


def pages() -> list[Path]:
    """Every page whose prose is checked; raw outputs in docs/results are not pages."""
    docs = (ROOT / "docs").rglob("*.md")
    kept = [page for page in docs if page.relative_to(ROOT / "docs").parts[0] != "results"]
    return [*(ROOT / name for name in PAGES), *sorted(kept)]


def main(names: list[str]) -> int:
    rules, longest = load_rules()
    count = 0
    for page in [Path(name) for name in names] or pages():
        shown = page.relative_to(ROOT) if page.is_absolute() else page
        markdown = page.read_text(encoding="utf-8")
        for line, message in sorted(complaints(markdown, rules, longest)):
            print(f"{shown}:{line}: {message}")
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
