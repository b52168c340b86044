# SPDX-License-Identifier: Apache-2.0
"""scripts/release_notes.py: one version everywhere, and its section of the changelog."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from programs import load_program
from sglang_longflow import __version__

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script():
    return load_program("scripts/release_notes.py")


def test_package_chart_and_citation_name_the_same_version(script):
    assert script.problems(__version__) == []


def test_every_file_with_another_version_is_named(script, tmp_path):
    for name in script.VERSIONS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    path = tmp_path / "CITATION.cff"
    path.write_text(path.read_text().replace(f"version: {__version__}\n", "version: 0.0.7\n"))
    assert script.problems(__version__, tmp_path) == [
        f"CITATION.cff: version 0.0.7, expected {__version__}"
    ]
    assert len(script.problems("9.9.9", tmp_path)) == len(script.VERSIONS)


def test_a_section_ends_where_the_next_begins(script):
    text = "## [Unreleased]\n- c\n\n## [0.2.0] - 2027-01-02\n- b\n\n## [0.1.0] - 2026-11-29\n- a\n"
    assert script.notes("0.2.0", text) == "- b"
    assert script.notes("0.1.0", text) == "- a"
    assert script.notes("0.3.0", text) == script.notes("Unreleased", text) == ""


def test_the_changelog_has_the_version_or_prepares_it_and_keeps_its_form(script):
    headings = re.findall(r"^## (.+)$", CHANGELOG, re.M)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", one) for one in headings[1:])
    released = headings[1][1:].split("]")[0]
    if released != __version__:
        assert numbers(released) < numbers(__version__)
        assert unreleased(CHANGELOG)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", CHANGELOG, re.M)) <= kinds


def numbers(version: str) -> list[int]:
    return [int(word) for word in version.split(".")]


def unreleased(changelog: str) -> str:
    return changelog.split("## [Unreleased]")[1].split("\n## ")[0].strip()


def test_a_base_by_its_tag_alone_is_named(script):
    digest = "sha256:" + "0a" * 32
    text = f"ARG ONE_IMAGE=a/b:v1@{digest}\nARG TWO_IMAGE=a/c:v2\nFROM ${{TWO_IMAGE}} AS x\n"
    (line,) = script.unpinned(text)
    assert "TWO_IMAGE=a/c:v2 has no digest" in line and "inspect a/c:v2` has it" in line
    assert script.unpinned(text.replace("v2\n", f"v2@{digest}\n")) == []


@pytest.fixture
def ready(script, tmp_path, monkeypatch):
    """A tree that is ready to be released: a dated section, and bases with digests."""
    for name in (*script.VERSIONS, "CHANGELOG.md", "Dockerfile"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    dated = f"## [Unreleased]\n\n## [{__version__}] - 2027-01-02\n\n### Added\n\n- a\n"
    (tmp_path / "CHANGELOG.md").write_text(dated)
    text = re.sub(r"(?m)^(ARG \w+_IMAGE=[^@\s]+)$", rf"\1@sha256:{'0' * 64}", DOCKERFILE)
    (tmp_path / "Dockerfile").write_text(text)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script.problems, "__defaults__", (tmp_path,))
    return tmp_path


def test_the_status_is_the_notes_or_what_is_wrong(script, ready, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["release_notes.py", f"v{__version__}"])
    assert script.main() == 0
    assert capsys.readouterr().out == "### Added\n\n- a\n"
    monkeypatch.setattr("sys.argv", ["release_notes.py", "v9.9.9"])
    assert script.main() == 1
    out, err = capsys.readouterr()
    assert out == "" and "CHANGELOG.md: no section '## [9.9.9] - DATE'" in err


def test_nothing_is_released_on_a_base_without_a_digest(script, ready, monkeypatch, capsys):
    file = ready / "Dockerfile"
    file.write_text(re.sub(r"(?m)^(ARG SGLANG_IMAGE=[^@]+)@.*$", r"\1", file.read_text()))
    monkeypatch.setattr("sys.argv", ["release_notes.py", f"v{__version__}"])
    assert script.main() == 1
    out, err = capsys.readouterr()
    assert out == "" and "SGLANG_IMAGE=lmsysorg/sglang:v" in err and "has no digest" in err
