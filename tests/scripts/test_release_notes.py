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


def test_the_changelog_has_the_version_and_keeps_its_form(script):
    assert script.notes(__version__, CHANGELOG)
    headings = re.findall(r"^## (.+)$", CHANGELOG, re.M)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", one) for one in headings[1:])
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", CHANGELOG, re.M)) <= kinds


def test_the_status_is_the_notes_or_what_is_wrong(script, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["release_notes.py", f"v{__version__}"])
    assert script.main() == 0 and "### Added" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["release_notes.py", "v9.9.9"])
    assert script.main() == 1
    out, err = capsys.readouterr()
    assert out == "" and "CHANGELOG.md: no section '## [9.9.9] - DATE'" in err
