# SPDX-License-Identifier: Apache-2.0
"""What the autoscalers' PromQL counts, by Prometheus itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from manifests import CHART, helm, queries

pytestmark = pytest.mark.deploy
RUNNING, QUEUED = "sglang:num_running_reqs", "sglang:num_queue_reqs"
A, B = "longflow-5d8f7c9b44-x2v7k", "longflow-5d8f7c9b44-k8s2z"


def series(metric: str, value: int, pod: str = A, namespace: str = "longflow", **labels) -> dict:
    labels = {"namespace": namespace, "pod": pod, "job": "longflow/longflow", **labels}
    text = ", ".join(f'{name}="{label}"' for name, label in labels.items())
    return {"series": f"{metric}{{{text}}}", "values": f"{value}x3"}


def check(tmp_path: Path, given: list[dict], query: str, expected: list[dict]) -> str:
    """Empty, or what promtool says; a value without labels has the labels {}."""
    test = {"expr": query, "eval_time": "1m", "exp_samples": expected}
    file = tmp_path / "test.yaml"
    content = {"tests": [{"interval": "30s", "input_series": given, "promql_expr_test": [test]}]}
    file.write_text(yaml.safe_dump(content))
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.fixture(scope="module")
def scaled(tools) -> tuple[str, str]:
    objects = helm(tools, {"autoscaling": {"kind": "keda"}})
    found = queries(objects)
    return found["ScaledObject/longflow load"], found["ScaledObject/longflow queue"]


def total(value: int) -> list[dict]:
    return [{"labels": "{}", "value": value}]


BOTH = [series(RUNNING, 100), series(QUEUED, 7), series(RUNNING, 60, B), series(QUEUED, 0, B)]
OTHERS = {
    "nothing": [],
    "another namespace": [series(RUNNING, 9, namespace="x"), series(QUEUED, 9, namespace="x")],
    "the router": [series(RUNNING, 9, "longflow-router-5d8f7c9b44-x2v7k")],
    "another release": [series(RUNNING, 9, "longflow2-5d8f7c9b44-x2v7k")],
    "one series by priority": [series(RUNNING, 60, priority="1"), series(QUEUED, 7, priority="2")],
    "ranks": [series(m, v, tp_rank="1") for m, v in ((RUNNING, 100), (QUEUED, 7))],
    "a second job": [series(m, v, job="pods") for m, v in ((RUNNING, 100), (QUEUED, 7))],
}


@pytest.mark.parametrize("others", OTHERS)
def test_requests_of_this_release_count_once(scaled, tmp_path, others):
    load, queue = scaled
    given = BOTH + OTHERS[others]
    assert check(tmp_path, given, load, total(167)) == ""
    assert check(tmp_path, given, queue, total(7)) == ""


def test_a_wrong_count_is_noticed(scaled, tmp_path):
    assert "got" in check(tmp_path, BOTH, scaled[0], total(168))


def test_data_parallel_schedulers_are_added(scaled, tmp_path):
    given = [
        series(metric, value, dp_rank=rank, tp_rank="0", priority="")
        for rank in ("0", "1")
        for metric, value in ((RUNNING, 40), (QUEUED, 3))
    ]
    assert check(tmp_path, given, scaled[0], total(86)) == ""


def test_a_missing_metric_is_no_value_at_all(scaled, tmp_path):
    load, queue = scaled
    assert check(tmp_path, [series(RUNNING, 100)], load, []) == ""
    assert check(tmp_path, [], queue, []) == ""


def test_the_adapter_counts_the_same_by_pod(tmp_path):
    rules = yaml.safe_load((CHART / "files/prometheus-adapter.yaml").read_text())["rules"]
    given = BOTH + OTHERS["ranks"] + OTHERS["one series by priority"] + OTHERS["a second job"]
    for rule, (a, b) in zip(rules["custom"], ((107, 60), (7, 0)), strict=True):
        query = rule["metricsQuery"].replace("<<.GroupBy>>", "pod")
        query = query.replace("<<.LabelMatchers>>", f'namespace="longflow",pod=~"{A}|{B}"')
        expected = [{"labels": f'{{pod="{pod}"}}', "value": v} for pod, v in ((A, a), (B, b))]
        assert check(tmp_path, given, query, expected) == ""
