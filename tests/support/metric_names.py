# SPDX-License-Identifier: Apache-2.0
"""Which metrics exist: what the installed SGLang declares, and what our exporter registers."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import yaml

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
SUFFIXES = {
    "Gauge": [""],
    "Counter": [""],
    "Histogram": ["_bucket", "_sum", "_count"],
    "GaugeHistogram": [""],
}


def sglang_metrics() -> set[str]:
    """Series names by SGLang's source, where `Gauge`, `Counter` and `Histogram` are called."""
    package = Path(importlib.util.find_spec("sglang").origin).parent
    found = set()
    for source in sorted((package / "srt/observability").rglob("*.py")):
        for call in ast.walk(ast.parse(source.read_text())):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                continue
            name = next((word.value for word in call.keywords if word.arg == "name"), None)
            if call.func.id in SUFFIXES and isinstance(name, ast.Constant):
                found |= {name.value + suffix for suffix in SUFFIXES[call.func.id]}
    return found


def longflow_metrics() -> set[str]:
    """Series names that the exporter and the refusal counter register."""
    import prometheus_client

    from sglang_longflow.core.counters import Counters, Stall
    from sglang_longflow.hooks import metrics

    registry = prometheus_client.REGISTRY
    before = set(registry._collector_to_names)
    try:
        exporter = metrics.Exporter("names", row_capacity=1, planned_rows=1)
        exporter.update(SimpleNamespace(counters=Counters(), stall=Stall()), [])
        metrics.count_refusal("names", "names")
        return {
            sample.name
            for collector in set(registry._collector_to_names) - before
            for family in collector.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        }
    finally:
        metrics._refusals.cache_clear()
        for collector in set(registry._collector_to_names) - before:
            registry.unregister(collector)


def rules() -> list[dict]:
    """Every rule of rules.yaml."""
    groups = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def rule_queries() -> dict[str, str]:
    return {rule.get("alert") or rule["record"]: rule["expr"] for rule in rules()}


def dashboard_queries(dashboard: dict) -> dict[str, str]:
    """Panel title and letter of each query, with Grafana's variables filled in."""
    queries = {}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            queries[f"{panel['title']} {target['refId']}"] = target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            inner = re.fullmatch(r"label_values\((.+), \w+\)", variable["query"]["query"])
            assert inner, f"{variable['name']}: expected label_values(metric, label)"
            queries[f"variable {variable['name']}"] = inner[1]
    filled = {"$__rate_interval": "1m", "$job": ".*", "$instance": ".*"}
    for where, query in queries.items():
        for variable, value in filled.items():
            query = query.replace(variable, value)
        assert "$" not in query, f"{where}: a variable is left in {query}"
        queries[where] = query
    return queries


def names_in(queries: dict[str, str], tools: Path) -> dict[str, list[str]]:
    """Metric names in each query; fails where one does not parse."""
    done = subprocess.run(
        [tools / "venv/bin/python", Path(__file__).parent / "promql_names.py"],
        input=json.dumps(queries),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
