# SPDX-License-Identifier: Apache-2.0
"""The schema of the server's YAML file accepts and refuses what `longflow serve --config` does."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from sglang_longflow.errors import ConfigError
from sglang_longflow.server.options import server_options
from sglang_longflow.server.yaml_file import yaml_arguments

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "configs/server.schema.json").read_text())
CHART = json.loads((ROOT / "deploy/helm/sglang-longflow/values.schema.json").read_text())
VALUES = (1, 1.5, -3, "text", True, False, None, [1, 2], ["a"], [True], {"a": 1})
#: What the reader leaves to the server, which knows limits and choices.
OURS = {"kv-budget": 64, "kv-policy": "tova", "kv-planned-rows": 1}


def problems(content: dict) -> list[str]:
    return [error.message for error in jsonschema.Draft7Validator(SCHEMA).iter_errors(content)]


def is_read(content: dict, folder: Path) -> bool:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(content))
    try:
        yaml_arguments(file)
    except ConfigError:
        return False
    return True


@pytest.mark.sglang
def test_schema_and_reader_take_the_same_types(tmp_path):
    kinds = {}
    for option in server_options():
        has_choices = option.choices or option.name == "reasoning_parser"
        if option.name != "config" and not option.name.startswith("kv_") and not has_choices:
            kinds.setdefault((option.kind, option.nargs), option.flags[0][2:])
    assert len(kinds) >= 8
    for key in kinds.values():
        for value in VALUES:
            content = {key: value}
            assert is_read(content, tmp_path) == (problems(content) == []), content


@pytest.mark.sglang
def test_choices_are_sglangs():
    options = {o.flags[0][2:]: o.choices for o in server_options() if o.choices and o.kind != "any"}
    assert len(options) > 40
    for key, choices in options.items():
        assert problems({key: choices[0]}) == problems({key: None}) == []
        assert problems({key: "no such value"}) != []
    assert problems({"reasoning-parser": "qwen3"}) == []
    assert problems({"reasoning-parser": "qwen"}) != []


@pytest.mark.sglang
def test_every_key_that_the_reader_knows_is_in_the_schema(tmp_path):
    """Other names of an argument too, so that an editor marks none of them."""
    names = {
        word
        for option in server_options()
        for word in (option.name.replace("_", "-"), *(flag[2:] for flag in option.flags))
    } - {"config"}
    assert names == set(SCHEMA["properties"])
    assert {"model", "tensor-parallel-size", "page-size", *OURS} <= names


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"kv-bugdet": 5}, "'kv-bugdet' was unexpected"),
        ({"kv-budget": "x"}, "'x' is not of type 'integer'"),
        ({"kv-budget": -1}, "-1 is less than the minimum"),
        ({"kv-budget": True}, "True is not of type"),
        ({"kv-policy": "longflw"}, "'longflw' is not one of"),
        ({"kv-victims": "head"}, "'head' is not one of"),
        ({"kv-planned-rows": 0}, "0 is less than the minimum"),
        ({"kv-budget": 64, "page-size": 16}, "16 is not one of [1, None]"),
    ],
)
def test_mistakes_are_found(content, text):
    (problem,) = problems(content)
    assert text in problem


def test_what_is_left_out_or_removed_is_fine():
    assert problems({}) == problems(dict.fromkeys(SCHEMA["properties"])) == problems(OURS) == []
    assert problems({"page-size": 16}) == problems({"page-size": 16, "kv-budget": None}) == []


def test_shipped_files_fit_and_name_the_schema():
    files = sorted((ROOT / "configs").glob("*.yaml"))
    assert len(files) >= 4
    for file in files:
        assert problems(yaml.safe_load(file.read_text())) == [], file.name
        assert file.read_text().startswith("# yaml-language-server: $schema=server.schema.json\n")


def test_the_chart_has_the_same():
    there = {key: value for key, value in SCHEMA.items() if key not in ("$schema", "title")}
    assert CHART["properties"]["config"] == there
