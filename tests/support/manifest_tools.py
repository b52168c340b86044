# SPDX-License-Identifier: Apache-2.0
"""Runs in the tools' interpreter: python manifest_tools.py TASK < input.json, answers in JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def helm(jobs: list[dict]) -> list[dict]:
    """Objects of the chart for each job's values, or the error that Helm gives."""
    import helm_python
    import yaml

    found = []
    for job in jobs:
        try:
            texts = helm_python.Chart.load(job["chart"]).render(
                job.get("values"), name=job["name"], namespace=job["namespace"]
            )
        except helm_python.HelmError as error:
            found.append({"error": str(error)})
            continue
        objects = [
            content
            for path in sorted(texts)
            if path.endswith(".yaml")
            for content in yaml.safe_load_all(texts[path])
            if content is not None
        ]
        found.append({"objects": objects})
    return found


def lint(jobs: list[dict]) -> list[dict]:
    """Helm's messages for each job's values."""
    import helm_python

    return [helm_python.lint(job["chart"], job.get("values"), strict=True) for job in jobs]


def schema(objects: list[dict]) -> list[list[str]]:
    """What is wrong with each built-in object, in the oldest and the newest Kubernetes."""
    import kubernetes_validate

    found = []
    for content in objects:
        problems = []
        for version in ("1.27", "1.37"):
            try:
                kubernetes_validate.validate(content, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                place = ".".join(str(part) for part in error.path)
                problems.append(f"{version} {place}: {error.message}")
            except (kubernetes_validate.SchemaNotFoundError, FileNotFoundError) as error:
                problems.append(f"{version}: {error}")
        found.append(problems)
    return found


def _closed(schema: Any) -> Any:
    """The schema without fields that it does not name, as in the API server's strict validation."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def crd(objects: list[dict]) -> list[list[str]]:
    """What is wrong with each object by the schema in crds/KIND.json; its CEL rules are not run."""
    import jsonschema

    found = []
    for content in objects:
        file = Path(__file__).parent / "crds" / f"{content['kind']}.json"
        schema = _closed(json.loads(file.read_text(encoding="utf-8")))
        validator = jsonschema.Draft202012Validator(schema)
        found.append([f"{e.json_path}: {e.message}" for e in validator.iter_errors(content)])
    return found


def promql(queries: list[str]) -> list[str | None]:
    """None for each query that parses, else why not."""
    import promql_parser

    found: list[str | None] = []
    for query in queries:
        try:
            promql_parser.parse(query)
            found.append(None)
        except ValueError as error:
            found.append(str(error))
    return found


TASKS = {"helm": helm, "lint": lint, "schema": schema, "crd": crd, "promql": promql}

if __name__ == "__main__":
    json.dump(TASKS[sys.argv[1]](json.load(sys.stdin)), sys.stdout)
