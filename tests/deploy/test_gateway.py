# SPDX-License-Identifier: Apache-2.0
"""Inference pool, endpoint picker, routes: they meet, and every name in them exists."""

from __future__ import annotations

import re

import pytest
import yaml

from manifests import CHART, DEPLOY, helm, kustomize, name_of
from metric_names import longflow_metrics, sglang_metrics

pytestmark = pytest.mark.deploy
#: Of the endpoint picker v1.5.0: plugins that the configuration may name, with the fields of their
#: parameters (cmd/epp/runner/runner.go, and the structs in pkg/epp/framework/plugins).
PLUGINS = {
    "metrics-data-source": {"scheme", "path", "insecureSkipVerify"},
    "core-metrics-extractor": {"engineLabelKey", "defaultEngine", "engineConfigs"},
    "kv-cache-utilization-scorer": set(),
    "queue-scorer": set(),
    "prefix-cache-scorer": {
        *("autoTune", "blockSizeTokens", "maxPrefixBlocksToMatch", "maxPrefixTokensToMatch"),
        "lruCapacityPerServer",
    },
    "weighted-random-picker": {"maxNumOfEndpoints"},
    "utilization-detector": {
        *("queueDepthThreshold", "kvCacheUtilThreshold", "metricsStalenessThreshold", "headroom"),
    },
    "openai-parser": set(),
    "passthrough-parser": set(),
}
#: Fields of apix/config/v1alpha1, which is decoded strictly.
CONFIG = {
    *("apiVersion", "kind", "featureGates", "plugins", "schedulingProfiles", "saturationDetector"),
    *("dataLayer", "flowControl", "parser"),
}
#: Flags of pkg/epp/server/options.go that the chart may use.
FLAGS = {
    *("pool-group", "pool-name", "refresh-metrics-interval", "metrics-endpoint-auth"),
    *("enable-pprof", "tracing", "zap-encoder", "config-text"),
}
#: "is deprecated and cannot be used": with one of them the picker ends.
ENDING_FLAGS = {
    *("total-queued-requests-metric", "total-running-requests-metric", "lora-info-metric"),
    *("kv-cache-usage-percentage-metric", "cache-info-metric"),
}
POOL = yaml.safe_load((CHART / "examples/inference-pool.yaml").read_text())


def one(objects: list, kind: str, name: str) -> dict:
    (found,) = (content for content in objects if name_of(content) == f"{kind}/{name}")
    return found


def picker_of(objects: list) -> dict:
    (container,) = one(objects, "Deployment", "longflow-epp")["spec"]["template"]["spec"][
        "containers"
    ]
    return container


def configuration(objects: list) -> dict:
    arguments = picker_of(objects)["args"]
    return yaml.safe_load(arguments[arguments.index("--config-text") + 1])


@pytest.fixture(scope="module")
def pool(tools) -> list:
    return helm(tools, POOL)


def test_the_pool_is_the_servers_and_its_picker(pool):
    spec = one(pool, "InferencePool", "longflow")["spec"]
    server = one(pool, "Deployment", "longflow")["spec"]["template"]
    assert spec["selector"]["matchLabels"].items() <= server["metadata"]["labels"].items()
    (port,) = server["spec"]["containers"][0]["ports"]
    assert spec["targetPorts"] == [{"number": port["containerPort"]}]
    reference = spec["endpointPickerRef"]
    service = one(pool, "Service", reference["name"])["spec"]
    (grpc,) = (p for p in service["ports"] if p["port"] == reference["port"]["number"])
    ports = {p["name"]: p["containerPort"] for p in picker_of(pool)["ports"]}
    assert ports[grpc["targetPort"]] == 9002
    probed = {
        picker_of(pool)[probe]["grpc"]["port"] for probe in ("readinessProbe", "livenessProbe")
    }
    assert probed == {ports["grpc-health"]}


def test_the_picker_is_asked_for_its_pool_with_flags_that_it_has(pool):
    arguments = picker_of(pool)["args"]
    flags = {word[2:].partition("=")[0] for word in arguments if word.startswith("--")}
    assert flags <= FLAGS and not flags & ENDING_FLAGS
    assert "--pool-name=longflow" in arguments
    # Without --pool-namespace it takes this variable.
    names = {v["name"]: v["valueFrom"]["fieldRef"]["fieldPath"] for v in picker_of(pool)["env"]}
    assert names["NAMESPACE"] == "metadata.namespace"
    rules = one(pool, "Role", "longflow-epp")["rules"]
    may = {(g, r) for rule in rules for g in rule["apiGroups"] for r in rule["resources"]}
    assert {("", "pods"), ("inference.networking.k8s.io", "inferencepools")} <= may
    assert {verb for rule in rules for verb in rule["verbs"]} == {"get", "list", "watch"}


@pytest.mark.parametrize("parser", ["openai-parser", "passthrough-parser"])
def test_the_picker_configuration_names_what_exists(tools, parser):
    objects = helm(tools, {**POOL, "inferencePool": {"enabled": True, "parser": parser}})
    found = configuration(objects)
    assert set(found) <= CONFIG
    assert (found["apiVersion"], found["kind"]) == (
        "inference.networking.x-k8s.io/v1alpha1",
        "EndpointPickerConfig",
    )
    names = [plugin.get("name", plugin["type"]) for plugin in found["plugins"]]
    assert len(names) == len(set(names))
    for plugin in found["plugins"]:
        assert set(plugin.get("parameters", {})) <= PLUGINS[plugin["type"]], plugin
    (profile,) = found["schedulingProfiles"]
    used = [plugin["pluginRef"] for plugin in profile["plugins"]]
    used += [found["saturationDetector"]["pluginRef"], found["parser"]["pluginRef"]]
    assert set(used) <= set(names)
    assert found["parser"]["pluginRef"] == parser
    # A prefix needs a prompt, which passthrough does not read.
    assert ("prefix-cache-scorer" in used) == (parser == "openai-parser")


def test_the_picker_reads_free_rows(pool):
    """Its KV usage is rows in use; every metric exists; the engine is the label of the pods."""
    (extractor,) = (
        plugin["parameters"]
        for plugin in configuration(pool)["plugins"]
        if plugin["type"] == "core-metrics-extractor"
    )
    (engine,) = extractor["engineConfigs"]
    labels = one(pool, "Deployment", "longflow")["spec"]["template"]["metadata"]["labels"]
    assert engine.pop("name") == labels["inference.networking.k8s.io/engine-type"]
    assert set(engine) == {"queuedRequestsSpec", "runningRequestsSpec", "kvUsageSpec"}
    assert set(engine.values()) <= sglang_metrics() | longflow_metrics()
    assert engine["kvUsageSpec"] == "sglang_longflow_rows_used_ratio"
    weights = {
        plugin["pluginRef"]: plugin.get("weight", 0)
        for plugin in configuration(pool)["schedulingProfiles"][0]["plugins"]
    }
    assert max(weights, key=weights.__getitem__) == "free-rows"


def test_the_picker_is_locked_down_and_outlives_answers(pool):
    pod = one(pool, "Deployment", "longflow-epp")["spec"]["template"]["spec"]
    server = one(pool, "Deployment", "longflow")["spec"]["template"]["spec"]
    assert pod["securityContext"] == server["securityContext"]
    security = server["containers"][0]["securityContext"]
    assert picker_of(pool)["securityContext"] == security
    assert pod["terminationGracePeriodSeconds"] == server["terminationGracePeriodSeconds"]
    assert re.fullmatch(r"registry\.k8s\.io/\S+/epp:v\d+\.\d+\.\d+", picker_of(pool)["image"])


GATEWAY = {"enabled": True, "gateway": {"name": "web"}}


@pytest.mark.parametrize(
    ("values", "backend"),
    [
        ({}, {"kind": "Service", "name": "longflow", "port": 30000}),
        (
            {"router": {"enabled": True, "port": 8000}},
            {"kind": "Service", "name": "longflow-router", "port": 8000},
        ),
        (
            {"inferencePool": {"enabled": True}},
            {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "longflow"},
        ),
    ],
)
def test_a_route_leads_to_what_clients_use(tools, values, backend):
    values = {**values, "httpRoute": GATEWAY, "shutdown": {"longestGenerationSeconds": 7200}}
    (rule,) = one(helm(tools, values), "HTTPRoute", "longflow")["spec"]["rules"]
    assert rule["backendRefs"] == [backend]
    assert rule["timeouts"] == {"request": "14400s"}
    assert [match["path"]["value"] for match in rule["matches"]] == ["/v1"]


@pytest.mark.parametrize(("limit", "expected"), [("48h", {"request": "48h"}), ("none", None)])
def test_the_limit_of_a_route_can_be_set_or_left_out(tools, limit, expected):
    objects = helm(tools, {"httpRoute": {**GATEWAY, "requestTimeout": limit}})
    (rule,) = one(objects, "HTTPRoute", "longflow")["spec"]["rules"]
    assert rule.get("timeouts") == expected


def test_an_ingress_leads_to_a_port_that_exists(tools):
    for router in (False, True):
        objects = helm(tools, {"router": {"enabled": router}, "ingress": {"enabled": True}})
        (rule,) = one(objects, "Ingress", "longflow")["spec"]["rules"]
        (path,) = rule["http"]["paths"]
        service = path["backend"]["service"]
        assert service["name"] == ("longflow-router" if router else "longflow")
        ports = one(objects, "Service", service["name"])["spec"]["ports"]
        assert service["port"]["name"] in {port["name"] for port in ports}


@pytest.mark.parametrize("is_service", [False, True])
def test_nothing_is_scraped_twice(tools, is_service):
    """PodMonitors or ServiceMonitors, not both; the job is the same, for the alert rules."""
    values = {**POOL, "monitoring": {"enabled": True, "serviceMonitor": is_service}}
    objects = helm(tools, values)
    monitors = [content for content in objects if content["kind"].endswith("Monitor")]
    kind = "ServiceMonitor" if is_service else "PodMonitor"
    assert [name_of(monitor) for monitor in monitors] == [
        f"{kind}/longflow",
        f"{kind}/longflow-epp",
    ]
    if is_service:
        (endpoint,) = monitors[0]["spec"]["endpoints"]
        assert endpoint["relabelings"] == [
            {
                "sourceLabels": ["__meta_kubernetes_namespace"],
                "targetLabel": "job",
                "replacement": "$1/longflow",
            }
        ]


def test_the_key_reaches_the_router_too(tmp_path):
    """Overlays with the router list api-key-secret after it."""
    overlay = tmp_path / "deploy/kustomize/overlays/keyed"
    overlay.mkdir(parents=True)
    (overlay.parents[1] / "base").symlink_to(DEPLOY / "kustomize/base")
    (overlay.parents[1] / "components").symlink_to(DEPLOY / "kustomize/components")
    (overlay / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "namespace": "longflow",
                "resources": ["../../base"],
                "components": [f"../../components/{c}" for c in ("router", "api-key-secret")],
            }
        )
    )
    objects = kustomize(overlay)
    for name in ("longflow", "longflow-router"):
        (container,) = one(objects, "Deployment", name)["spec"]["template"]["spec"]["containers"]
        variables = {variable["name"]: variable["valueFrom"] for variable in container["env"]}
        assert variables["LONGFLOW_API_KEY"] == {
            "secretKeyRef": {"name": "longflow-api-key", "key": "api-key"}
        }
    assert container["args"][-1] == "--api-key=$(LONGFLOW_API_KEY)"
