# SPDX-License-Identifier: Apache-2.0
"""The command lines that each --help ends with are command lines."""

from __future__ import annotations

import importlib
import shlex

import pytest

from sglang_longflow.cli.examples import EXAMPLES
from sglang_longflow.cli.main import COMMANDS, main
from sglang_longflow.cli.parser import Parser


def test_every_command_but_serve_has_examples():
    """serve prints a help of its own."""
    assert set(EXAMPLES) == set(COMMANDS) - {"serve"}


@pytest.mark.parametrize(
    ("name", "line"), [(name, line) for name, lines in EXAMPLES.items() for line in lines]
)
def test_an_example_parses_and_stands_in_the_help_on_one_line(name, line, capsys):
    program, command, *words = shlex.split(line)
    assert (program, command) == ("longflow", name)
    parser = Parser(prog=name)
    importlib.import_module(f"sglang_longflow.cli.{name}").add_arguments(parser)
    parser.parse(words[: words.index("--")] if name == "doctor" and "--" in words else words)
    with pytest.raises(SystemExit):
        main([name, "--help"])
    assert f"  {line}\n" in capsys.readouterr().out
