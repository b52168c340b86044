# SPDX-License-Identifier: Apache-2.0
"""Prometheus series of several schedulers that share SGLang's multiprocess folder."""

import json
import os
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry, multiprocess

pytestmark = pytest.mark.slow

SCHEDULER = """
import sys
from types import SimpleNamespace
from sglang_longflow.core.counters import Counters, RowStats, Stall
from sglang_longflow.hooks.metrics import Exporter

rank, held, overwritten = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rank = None if rank == "none" else int(rank)
capacity = held // 16 or None  # 4 and 6 rows; none where the default is full KV
exporter = Exporter("m", row_capacity=capacity, dp_rank=rank, planned_rows=2 * held or None)
rows = [RowStats("r", 2 * held, held, held, "longflow", held, 0)]
counters = Counters(overwritten_tokens=overwritten)
exporter.update(SimpleNamespace(counters=counters, stall=Stall()), rows)
"""


def scrape(folder, *schedulers):
    """{(series, dp_rank or None): value} after these have run, one after the other."""
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    for arguments in schedulers:
        command = [sys.executable, "-c", SCHEDULER, *map(str, arguments)]
        subprocess.run(command, env=env, check=True)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, path=str(folder))
    return {
        (sample.name, sample.labels.get("dp_rank")): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.labels["model_name"] == "m"
    }


def test_schedulers_of_a_data_parallel_server_do_not_overwrite_each_other(tmp_path):
    found = scrape(tmp_path, (0, 64, 5), (1, 96, 7))
    for name, values in (
        ("sglang_longflow_budgeted_tokens", (64, 96)),
        ("sglang_longflow_row_capacity", (4, 6)),
        ("sglang_longflow_rows_used_ratio", (1 / 4, 1 / 6)),
        ("sglang_longflow_planned_rows", (128, 192)),
    ):
        assert (found[name, "0"], found[name, "1"]) == values
    total = "sglang_longflow_overwritten_tokens_total"
    assert (found[total, "0"], found[total, "1"]) == (5, 7)


def test_one_scheduler_has_no_rank(tmp_path):
    found = scrape(tmp_path, ("none", 64, 5))
    assert found["sglang_longflow_budgeted_tokens", None] == 64
    assert {rank for _, rank in found} == {None}


def test_without_a_capacity_there_is_no_ratio_of_rows(tmp_path):
    names = {name for name, _ in scrape(tmp_path, ("none", 15, 0))}
    assert "sglang_longflow_budgeted_tokens" in names
    assert not names & {"sglang_longflow_rows_used_ratio", "sglang_longflow_row_capacity"}


LOCAL = """
import json
from types import SimpleNamespace
from prometheus_client import Histogram
from sglang_longflow.hooks.metrics import count_refusal, local_counts

first = Histogram("first", "-", ["model_name", "is_streaming"], buckets=[0.1, 0.2])
inter = Histogram("inter", "-", ["model_name", "priority"], buckets=[0.1, 0.2])
manager = SimpleNamespace(
    enable_metrics=True,
    metrics_collector=SimpleNamespace(
        histogram_time_to_first_token=first, histogram_inter_token_latency=inter
    ),
)
assert {h.counts for h in local_counts(manager).latencies.values()} == {()}
for streaming, value in (("true", 0.05), ("true", 0.1), ("true", 9), ("false", 0.15)):
    first.labels("m", streaming).observe(value)
for priority, value in (("1", 0.05), ("2", 0.06), ("2", 0.15)):
    inter.labels("m", priority).observe(value)
count_refusal("over_max", "m")
count_refusal("wrong_type", "m")
found = local_counts(manager)
off = local_counts(SimpleNamespace(enable_metrics=False))
counts = {name: h.counts for name, h in found.latencies.items()}
bounds = found.latencies["inter_token"].bounds_s
print(json.dumps([found.refused_requests, counts, bounds[:2], off.missing, list(off.latencies)]))
"""


@pytest.mark.parametrize("is_shared", [False, True], ids=["alone", "multiprocess"])
def test_what_the_http_process_has_counted(tmp_path, is_shared):
    """Streamed requests' first tokens only; all labels; SGLang's folder of several processes."""
    env = {name: value for name, value in os.environ.items() if "PROMETHEUS" not in name}
    if is_shared:
        env["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LOCAL], env=env, check=True, capture_output=True, text=True
    )
    refused, counts, bounds, missing, without = json.loads(done.stdout)
    assert (refused, bounds) == (2, [0.1, 0.2])
    assert counts == {"time_to_first_token": [2, 0, 1], "inter_token": [2, 1, 0]}
    assert set(missing.values()) == {"needs --enable-metrics"} and without == []
    assert set(missing) == set(counts)


def test_refusals_carry_the_model_as_the_other_metrics_do(tmp_path):
    code = "from sglang_longflow.hooks.metrics import count_refusal\n"
    code += "count_refusal('above_maximum', 'm')\ncount_refusal('above_maximum', 'm')"
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, path=str(tmp_path))
    labels = {"model_name": "m", "reason": "above_maximum"}
    assert registry.get_sample_value("sglang_longflow_refusals_total", labels) == 2
