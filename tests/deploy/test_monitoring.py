# SPDX-License-Identifier: Apache-2.0
"""Prometheus rules and their runbook, the scrape configuration, the Grafana dashboard."""

from __future__ import annotations

import ast
import json
import re
import subprocess

import pytest
import yaml

from metric_names import (
    MONITORING,
    ROOT,
    dashboard_queries,
    longflow_metrics,
    names_in,
    rule_queries,
    rules,
    sglang_metrics,
)

pytestmark = pytest.mark.deploy
DASHBOARD = json.loads((MONITORING / "grafana/dashboards/longflow.json").read_text())
ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
#: What Prometheus itself writes for every target.
OF_PROMETHEUS = {"up"}


def promtool(*arguments):
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, cwd=MONITORING)


@pytest.fixture(scope="module")
def existing() -> set[str]:
    """Every metric that a query may name."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    return sglang_metrics() | longflow_metrics() | recorded | OF_PROMETHEUS


def test_rules_are_valid():
    done = promtool("check", "rules", "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_do_what_their_tests_say():
    done = promtool("test", "rules", "rules_test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_rule_that_is_changed_fails_its_test(tmp_path):
    """The tests above can fail: a threshold off by a little is noticed."""
    text = (MONITORING / "rules.yaml").read_text()
    assert text.count("job:longflow_load:ratio > 0.95") == 1
    changed = text.replace("job:longflow_load:ratio > 0.95", "job:longflow_load:ratio > 0.85")
    (tmp_path / "rules.yaml").write_text(changed)
    (tmp_path / "rules_test.yaml").write_text((MONITORING / "rules_test.yaml").read_text())
    done = promtool("test", "rules", str(tmp_path / "rules_test.yaml"))
    assert done.returncode == 1
    assert "LongFlowAtCapacity" in done.stdout + done.stderr


def test_the_scrape_configuration_is_valid_and_loads_the_rules():
    done = promtool("check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules())} rules found" in done.stdout
    jobs = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    assert any("longflow" in job["job_name"] for job in jobs), "the rules look for that name"


def test_yaml_is_well_kept(tools):
    done = subprocess.run(
        [tools / "venv/bin/yamllint", "-s", "-c", "deploy/yamllint.yaml", "deploy/monitoring"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout


def test_every_alert_is_seen_firing_and_silent():
    tests = yaml.safe_load((MONITORING / "rules_test.yaml").read_text())["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    fires = {case["alertname"] for case in cases if case["exp_alerts"]}
    silent = {case["alertname"] for case in cases if not case["exp_alerts"]}
    assert fires == silent == set(ALERTS)


def test_every_alert_says_how_bad_it_is_and_where_to_read_on():
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}, name
        assert rule["annotations"]["runbook"] == f"docs/operate/runbook.md#{name.lower()}"


def test_the_runbook_has_a_section_for_every_alert_and_no_other():
    sections = re.findall(r"^## (\S+)$", (ROOT / "docs/operate/runbook.md").read_text(), re.M)
    assert sections == list(ALERTS), "same alerts, same order"


def test_the_runbook_explains_every_reason_of_a_refusal():
    reasons = set()
    for source in (ROOT / "sglang_longflow").rglob("request.py"):
        for call in ast.walk(ast.parse(source.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "BudgetError":
                reasons.add(call.args[1].value)
    section = (ROOT / "docs/operate/runbook.md").read_text().split("## LongFlowRefusalsRising")[1]
    explained = set(re.findall(r"`(\w+)`", re.sub(r"\|[^|]*\|$", "", section, flags=re.M)))
    # A server without a budget has no such counter.
    assert {"above_maximum", "never_fits"} < reasons
    assert reasons - {"inactive"} - explained == set()


def test_rules_name_metrics_that_exist(tools, existing):
    named = names_in(rule_queries(), tools)
    assert set(named) == set(rule_queries())
    assert {where: set(names) - existing for where, names in named.items()} == {
        where: set() for where in named
    }


def test_the_dashboard_names_metrics_that_exist(tools, existing):
    named = names_in(dashboard_queries(DASHBOARD), tools)
    assert len(named) > 20
    assert {where: set(names) - existing for where, names in named.items()} == {
        where: set() for where in named
    }
    ours = {name for names in named.values() for name in names if "longflow" in name}
    assert longflow_metrics() <= ours, "the dashboard shows every metric of ours"


def test_the_dashboard_is_one_that_grafana_loads():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        if panel["type"] == "row":
            continue
        assert panel["description"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == panel["datasource"]["uid"]
    sources = yaml.safe_load(
        (MONITORING / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    )["datasources"]
    assert {panel["datasource"]["uid"] for panel in panels if "datasource" in panel} == {
        source["uid"] for source in sources
    }


def test_no_two_panels_overlap():
    taken = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                other = taken.setdefault((x, y), panel["title"])
                assert other == panel["title"], f"{panel['title']} lies on {other}"


def test_the_lists_of_metrics_are_read_from_the_code(existing):
    assert {"sglang:token_usage", "sglang:http_responses_total"} <= existing
    assert "sglang:inter_token_latency_seconds_bucket" in existing
    assert "sglang:inter_token_latency_seconds" not in existing
    assert "sglang_longflow_overwritten_tokens_total" in existing
    assert "sglang_longflow_overwritten_tokens" not in existing
    assert 100 < len(existing) < 400


def test_a_query_that_does_not_parse_is_named(tools):
    with pytest.raises(AssertionError, match="broken one"):
        names_in({"broken one": "sum(up"}, tools)
