# SPDX-License-Identifier: Apache-2.0
"""scripts/spdx.py: every source file names its licence, in its first line or below a ``#!``."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from programs import load_program

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def spdx():
    return load_program("scripts/spdx.py")


@pytest.mark.parametrize(
    ("text", "comment", "expected"),
    [
        ("", "#", "# {}\n"),
        ('"""A."""\n', "#", '# {}\n"""A."""\n'),
        ("#!/bin/sh\nset -e\n", "#", "#!/bin/sh\n# {}\nset -e\n"),
        ("let a;\n", "//", "// {}\nlet a;\n"),
    ],
)
def test_where_it_goes(spdx, text, comment, expected):
    expected = expected.format(spdx.HEADER)
    assert spdx.with_header(text, comment) == expected
    assert spdx.with_header(expected, comment) == expected, "it is given once"


def test_a_checkout(spdx, tmp_path, capsys):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "a.py").write_text("a = 1\n")
    (tmp_path / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "notes.md").write_text("# A\n")
    (tmp_path / ".gitignore").write_text("left-out.py\n")
    (tmp_path / "left-out.py").write_text("")
    assert spdx.main(["--check"], tmp_path) == 1
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "a.py",
        "run.sh",
    ]
    assert (tmp_path / "a.py").read_text() == "a = 1\n", "a check changes nothing"
    assert spdx.main([], tmp_path) == 0
    assert spdx.main(["--check"], tmp_path) == 0
    assert (tmp_path / "run.sh").read_text() == f"#!/bin/sh\n# {spdx.HEADER}\n"
    assert (tmp_path / "notes.md").read_text() == "# A\n"
    assert (tmp_path / "left-out.py").read_text() == ""
