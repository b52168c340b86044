# SPDX-License-Identifier: Apache-2.0
"""Write the JSON schema of the server's YAML file; ``--check`` only compares.

It goes into ``config`` of the chart's values.schema.json, whose other parts are written by hand,
and into configs/server.schema.json, by which editors complete and check the files of ``--config``.
It accepts what `server.yaml_file.yaml_arguments` accepts, but keys with dashes alone: the chart's
templates look for those.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
CHART = ROOT / "deploy/helm/sglang-longflow/values.schema.json"
EDITORS = ROOT / "configs/server.schema.json"
DRAFT = "http://json-schema.org/draft-07/schema#"
TEXT = "Server arguments. Written by scripts/config_schema.py."
#: By kind of an option; a number is a text too, as on a command line.
TYPES = {
    "int": ["integer"],
    "float": ["number"],
    "str": ["string", "number"],
    "flag": ["boolean"],
    "switch": ["boolean"],
}
#: null leaves an argument unset: only so does a file of values remove a key of the chart's.
UNSET = "null"
#: Budgets need pages of one token; without a budget SGLang's own sizes are as good.
BUDGET_IS_SET = {"required": ["kv-budget"], "properties": {"kv-budget": {"type": "integer"}}}
PAGES_OF_ONE = {"properties": {"page-size": {"enum": [1, None]}}}


def of_option(option: Any) -> dict[str, Any]:
    """Schema of one value of SGLang's."""
    from sglang_longflow.settings.parsers import REASONING_PARSERS

    if option.kind == "any":
        return {}
    # SGLang works these out when it starts; the table is compared with its source.
    choices = REASONING_PARSERS if option.name == "reasoning_parser" else option.choices
    if choices and not option.nargs:
        return {"enum": [*choices, None]}
    kinds = TYPES[option.kind]
    if option.nargs:
        return {"type": [*kinds, "array", UNSET], "items": {"type": kinds}}
    return {"type": [*kinds, UNSET]}


def of_flag(flag: Any) -> dict[str, Any]:
    """Schema of one value of ours, with the flag's text for editors."""
    from sglang_longflow.settings.flags import LEAST_BUDGET_TOKENS

    choices = tuple(LEAST_BUDGET_TOKENS) if flag.name == "kv_policy" else flag.choices
    found: dict[str, Any] = {"enum": [*choices, None]} if choices else {}
    if not choices:
        found["type"] = [{int: "integer", str: "string", bool: "boolean"}[flag.type], UNSET]
    if flag.type is int:
        least = {
            "kv_budget_min": min(LEAST_BUDGET_TOKENS.values()),
            "kv_budget_max": min(LEAST_BUDGET_TOKENS.values()),
            "kv_planned_rows": 1,
        }
        found["minimum"] = least.get(flag.name, 0)
    return found | {"description": flag.help}


def properties() -> dict[str, Any]:
    """Every key of a file with its schema: SGLang's, other names of theirs, and ours."""
    from sglang_longflow.server.options import server_options
    from sglang_longflow.settings.flags import FLAGS

    ours = {flag.name: flag for flag in FLAGS}
    found: dict[str, Any] = {}
    for option in server_options():
        if option.name == "config":
            continue
        flag = ours.get(option.name)
        schema = of_flag(flag) if flag else of_option(option)
        for name in (option.name, *(flag.lstrip("-") for flag in option.flags)):
            found.setdefault(name.replace("_", "-"), schema)
    return dict(sorted(found.items()))


def block(indent: str, **more: Any) -> str:
    """The object's text, a line for each key."""

    def line(key: str, value: Any) -> str:
        return f"{json.dumps(key)}: {json.dumps(value)}"

    closed = {"type": "object", "additionalProperties": False}
    head = {**more, "description": TEXT, **closed, "if": BUDGET_IS_SET, "then": PAGES_OF_ONE}
    lines = [line(key, value) for key, value in head.items()]
    keys = ",\n".join(f"{indent}    {line(*item)}" for item in properties().items())
    lines.append(f'"properties": {{\n{keys}\n{indent}  }}')
    return "{\n" + ",\n".join(f"{indent}  {text}" for text in lines) + f"\n{indent}}}"


def wanted() -> dict[Path, str]:
    """Content of both files."""
    chart = CHART.read_text(encoding="utf-8")
    place = re.compile(r'^    "config": \{.*?^    \}', re.MULTILINE | re.DOTALL)
    if len(place.findall(chart)) != 1:
        sys.exit(f'{CHART.relative_to(ROOT)}: expected one "config" that is 4 spaces deep')
    text = f'    "config": {block("    ")}'
    title = {"$schema": DRAFT, "title": "longflow serve --config"}
    return {CHART: place.sub(lambda _: text, chart), EDITORS: block("", **title) + "\n"}


def main() -> int:
    check = "--check" in sys.argv[1:]
    stale = [
        (path, text)
        for path, text in wanted().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in stale:
        if check:
            print(f"{path.relative_to(ROOT)} is out of date: run python scripts/config_schema.py")
        else:
            path.write_text(text, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
