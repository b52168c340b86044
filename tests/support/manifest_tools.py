# SPDX-License-Identifier: Apache-2.0
"""Runs in the tools' interpreter: python manifest_tools.py TASK < input.json, answers in JSON."""

from __future__ import annotations

import json
import sys


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


TASKS = {"helm": helm, "lint": lint, "schema": schema, "promql": promql}

if __name__ == "__main__":
    json.dump(TASKS[sys.argv[1]](json.load(sys.stdin)), sys.stdout)
