# SPDX-License-Identifier: Apache-2.0
"""The tables without torch say what the policies' classes and SGLang's parser say."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from sglang_longflow.policies import make_policy, policy_names
from sglang_longflow.server.options import make_parser
from sglang_longflow.settings.flags import (
    DEFAULT_POLICY,
    FLAGS,
    LEAST_BUDGET_TOKENS,
    MIN_BUDGET_TOKENS,
    budget_words,
)


def test_the_table_of_policies_is_that_of_their_classes():
    found = {name: make_policy(name).min_budget_tokens for name in policy_names()}
    assert list(found.items()) == list(LEAST_BUDGET_TOKENS.items())  # in the order of --help too
    assert found[DEFAULT_POLICY] == MIN_BUDGET_TOKENS


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
@pytest.mark.sglang
def test_serve_reads_each_flag_as_its_table_says(flag):
    value = {"int": "96", "str": (flag.choices or ("tova",))[0], "flag": None}[flag.kind]
    words = [flag.option] if value is None else [flag.option, value]
    found = make_parser().parse_args(words)
    assert found == argparse.Namespace(**{flag.name: True if value is None else flag.type(value)})


def test_nothing_heavy_is_imported():
    code = (
        "import sys, sglang_longflow.settings.flags; "
        "print(sorted({'sglang', 'torch', 'yaml', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--kv-budget", "96"], "--kv-budget"),
        (["--kv-budget=96"], "--kv-budget"),
        (["--page-size", "1", "--kv-policy", "tova"], "--kv-policy"),
        (["--kv-cache-dtype", "fp8_e5m2", "--kv-events-config", "{}"], ""),
        (["--config"], ""),
        (["--config", "/no/such/file.yaml"], ""),
        ([], ""),
    ],
)
def test_words_of_a_command_line(argv, words):
    assert budget_words(argv) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kv-budget: 96\n", "kv-budget in"),
        ("kv_policy: tova\n", "kv_policy in"),
        ("page-size: 1\n", ""),
        ("- kv-budget\n", ""),
        ("{\n", ""),
    ],
)
def test_words_of_a_yaml_file(tmp_path, text, words):
    path = tmp_path / "server.yaml"
    path.write_text(text)
    for argv in (["--config", str(path)], [f"--config={path}"]):
        assert budget_words(argv) == (f"{words} {path}" if words else "")
