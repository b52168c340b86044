# SPDX-License-Identifier: Apache-2.0
"""The reasoning parsers are SGLang's, and a model gets its own."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from sglang_longflow.server.options import sglang_source
from sglang_longflow.settings.parsers import _BY_NAME, REASONING_PARSERS, reasoning_parser

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.sglang
def test_the_names_are_those_of_the_installed_sglang():
    """Read from its source, where importing takes ten seconds."""
    tree = ast.parse((sglang_source() / "srt/parser/reasoning_parser_names.py").read_text())
    (table,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "REASONING_PARSER_NAMES"
    ]
    assert ("auto", *ast.literal_eval(table)) == REASONING_PARSERS
    arguments = (sglang_source() / "srt/server_args.py").read_text()
    assert re.search(r'choices=\["auto"\] \+ reasoning_parser_choices', arguments)


def test_every_parser_of_the_table_exists():
    assert {parser for _, parser in _BY_NAME if parser} <= set(REASONING_PARSERS)


@pytest.mark.parametrize(
    ("model", "parser"),
    [
        ("Qwen/Qwen3-8B", "qwen3"),
        ("Qwen/Qwen3-8B-FP8", "qwen3"),
        ("Qwen/Qwen3-30B-A3B", "qwen3"),
        ("/models/Qwen3-1.7B/", "qwen3"),
        ("Qwen/Qwen3-4B-Thinking-2507", "qwen3-thinking"),
        ("Qwen/Qwen3-4B-Instruct-2507", ""),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", ""),
        ("Qwen/Qwen3-8B-Base", ""),
        ("Qwen/QwQ-32B", "deepseek-r1"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "deepseek-r1"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "deepseek-r1"),
        ("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", "deepseek-r1"),
        ("mistralai/Magistral-Small-2506", "mistral"),
        ("Qwen/Qwen2.5-7B-Instruct", ""),
        ("meta-llama/Llama-3.1-8B-Instruct", ""),
        ("qwen3-team/my-llama", ""),  # an organisation is no model
    ],
)
def test_a_model_gets_its_parser(model, parser):
    assert reasoning_parser(model) == parser


def test_the_shipped_configurations_agree():
    files = [yaml.safe_load(path.read_text()) for path in sorted(CONFIGS.glob("*.yaml"))]
    named = [content for content in files if "model-path" in content]
    assert len(named) >= 2
    for content in named:
        assert content["reasoning-parser"] == reasoning_parser(content["model-path"])
