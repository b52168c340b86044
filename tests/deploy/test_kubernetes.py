# SPDX-License-Identifier: Apache-2.0
"""Chart, base and overlays: valid, the same, and consistent with server, router and image."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess

import pytest
import yaml

from manifests import (
    CHART,
    CUSTOM,
    DEPLOY,
    crd_problems,
    helm,
    helm_error,
    kustomize,
    name_of,
    normal,
    problems,
    queries,
    tool,
)
from sglang_longflow.server.settings import read_settings

pytestmark = pytest.mark.deploy
ROOT = DEPLOY.parent
OVERLAYS = sorted(path.name for path in (DEPLOY / "kustomize/overlays").iterdir())
RULES = DEPLOY / "monitoring/rules.yaml"
ADAPTER = CHART / "files/prometheus-adapter.yaml"
#: Values beyond the examples, for what those leave out.
SECURED = {
    "secrets": {"huggingFace": "hf", "apiKey": "key", "apiKeyKey": "bearer"},
    "image": {"repository": "registry:5000/x", "tag": "sha256:" + "0" * 64, "pullSecrets": ["p"]},
    "extraArgs": ["--log-level=warning"],
    "extraEnv": [{"name": "A", "value": "b"}],
    "modelCache": {"kind": "emptyDir"},
    "extraVolumes": [{"name": "weights", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "weights", "mountPath": "/weights", "readOnly": True}],
    "initContainers": [{"name": "fetch", "image": "registry:5000/fetch:1"}],
    "runtimeClassName": "nvidia",
    "priorityClassName": "high",
    "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    "tolerations": [{"key": "team", "operator": "Equal", "value": "llm", "effect": "NoSchedule"}],
    "networkPolicy": {"clientNamespaces": ["apps"], "egressPorts": []},
    "podLabels": {"team": "llm"},
    "podAnnotations": {"a": "b"},
    "serviceAccount": {"annotations": {"a": "b"}},
    "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
    "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
    "autoscaling": {"kind": "keda", "keda": {"authenticationRef": "a", "authModes": "bearer"}},
    "router": {"enabled": True, "replicas": 2},
}
EXISTING_CLAIM = {
    "fullnameOverride": "chat",
    "modelCache": {"existingClaim": "weights"},
    "networkPolicy": {"enabled": False},
    "monitoring": {"enabled": True},
}
#: A Gateway and an Ingress at once, to the router.
OPEN = {
    "fullnameOverride": "chat",
    "router": {"enabled": True},
    "monitoring": {"enabled": True, "serviceMonitor": True},
    "httpRoute": {
        "enabled": True,
        "gateway": {"name": "web", "namespace": "gateways", "sectionName": "https"},
        "hostnames": ["chat.example.com"],
        "paths": ["/v1", "/generate"],
        "annotations": {"a": "b"},
    },
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "host": "chat.example.com",
        "tlsSecret": "chat-tls",
        "annotations": {"nginx.ingress.kubernetes.io/proxy-buffering": "off"},
    },
}


def example(name: str) -> dict:
    return yaml.safe_load((CHART / f"examples/{name}.yaml").read_text())


@pytest.fixture(scope="module")
def charts(tools) -> dict[str, list]:
    """The chart's objects for every example, for no values, and for the sets above."""
    values = {name: example(name) for name in OVERLAYS}
    values |= {"": None, "secured": SECURED, "existing claim": EXISTING_CLAIM, "open": OPEN}
    job = {"chart": str(CHART), "name": "longflow", "namespace": "longflow"}
    found = tool(tools, "helm", [job | {"values": v} for v in values.values()])
    assert [f["error"] for f in found if "error" in f] == []
    return {name: f["objects"] for name, f in zip(values, found)}


@pytest.fixture(scope="module")
def overlays() -> dict[str, list]:
    folder = DEPLOY / "kustomize"
    return {"": kustomize(folder / "base")} | {
        name: kustomize(folder / "overlays" / name) for name in OVERLAYS
    }


def of_kind(objects: list, kind: str) -> list:
    return [content for content in objects if content["kind"] == kind]


def server_of(objects: list) -> dict:
    return next(c for c in of_kind(objects, "Deployment") if "server" in str(c["metadata"]))


def pod_of(deployment: dict) -> dict:
    return deployment["spec"]["template"]["spec"]


def test_every_overlay_has_an_example():
    assert OVERLAYS == sorted(path.stem for path in (CHART / "examples").iterdir())
    assert {"keda", "hpa", "router", "tp2", "cpu", "inference-pool", "secrets"} <= set(OVERLAYS)


@pytest.mark.parametrize("name", ["", *OVERLAYS])
def test_kustomize_and_helm_make_the_same_objects(charts, overlays, name):
    assert normal(overlays[name]) == normal(charts[name])


def test_the_comparison_sees_a_difference(charts):
    changed = copy.deepcopy(charts[""])
    pod_of(server_of(changed))["terminationGracePeriodSeconds"] += 1
    assert normal(changed) != normal(charts[""])


def test_all_objects_are_valid(tools, charts):
    objects = {json.dumps(content): content for many in charts.values() for content in many}
    kinds = {content["kind"] for content in objects.values()}
    assert kinds == {
        *("Deployment", "Service", "ServiceAccount", "PersistentVolumeClaim", "ConfigMap"),
        *("PodDisruptionBudget", "NetworkPolicy", "HorizontalPodAutoscaler", "Ingress"),
        *("Role", "RoleBinding", *CUSTOM),
    }
    assert problems(tools, list(objects.values())) == []


def test_misspelt_fields_are_found(tools, charts):
    for kind, change in (
        ("Deployment", lambda spec: spec.update(replica=1)),
        ("NetworkPolicy", lambda spec: spec["ingress"][0].update(form=[])),
        ("PersistentVolumeClaim", lambda spec: spec.update(accessMode="ReadWriteOnce")),
        ("ScaledObject", lambda spec: spec.pop("triggers")),
        ("ScaledObject", lambda spec: spec.update(minReplicas=1)),
        ("ScaledObject", lambda spec: spec["fallback"].update(behavior="never")),
        ("ScaledObject", lambda spec: spec["triggers"][0].update(metadata={"threshold": 1})),
        ("PodMonitor", lambda spec: spec.pop("selector")),
        ("PodMonitor", lambda spec: spec["podMetricsEndpoints"][0].update(intervall="15s")),
        ("PrometheusRule", lambda spec: spec["groups"][0].pop("name")),
    ):
        broken = copy.deepcopy(of_kind(charts["keda"], kind)[0])
        change(broken["spec"])
        assert problems(tools, [broken]) != [], (kind, broken)
    for name, kind, change in (
        (
            "service-monitor",
            "ServiceMonitor",
            lambda spec: spec["endpoints"][0].update(prot="http"),
        ),
        ("inference-pool", "InferencePool", lambda spec: spec.pop("targetPorts")),
        ("inference-pool", "InferencePool", lambda spec: spec.update(targetPort=30000)),
        (
            "inference-pool",
            "InferencePool",
            lambda spec: spec["endpointPickerRef"].update(failureMode="Open"),
        ),
        ("inference-pool", "HTTPRoute", lambda spec: spec["rules"][0].update(timeout="1h")),
        (
            "inference-pool",
            "HTTPRoute",
            lambda spec: spec["rules"][0]["timeouts"].update(request="100000s"),
        ),
    ):
        broken = copy.deepcopy(of_kind(charts[name], kind)[0])
        change(broken["spec"])
        assert problems(tools, [broken]) != [], (kind, broken)
    assert crd_problems(tools, [{"kind": "Gateway"}]) == ["no type for kind Gateway"]


def test_generated_files_are_up_to_date(tools, tmp_path):
    for part in ("deploy", "scripts/render_manifests.py"):
        source = ROOT / part
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / part)
    command = [tools / "venv/bin/python", tmp_path / "scripts/render_manifests.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    stale = tmp_path / "deploy/kustomize/base/service.yaml"
    stale.write_text(stale.read_text().replace("30000", "30001"))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "out of date: deploy/kustomize/base/service.yaml\n"


def test_rules_are_those_of_the_monitoring_folder(charts):
    (rule,) = of_kind(charts["monitoring"], "PrometheusRule")
    assert rule["spec"] == yaml.safe_load(RULES.read_text())


def adapter_queries() -> list[str]:
    found = []
    for rule in yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]:
        query = rule["metricsQuery"].replace("<<.GroupBy>>", "pod")
        found += [query.replace("<<.LabelMatchers>>", 'namespace="a",pod=~"b|c"')]
        found += [rule["seriesQuery"]]
    return found


def test_promql_parses(tools, charts):
    found = queries([content for many in charts.values() for content in many])
    assert len(found) > 15 and any("load" in where for where in found)
    texts = [*found.values(), *adapter_queries()]
    assert not any("<<" in text for text in texts)
    assert set(tool(tools, "promql", texts)) == {None}
    (error,) = tool(tools, "promql", [found["ScaledObject/longflow load"] + ")"])
    assert error


def test_queries_are_about_this_release_alone(charts):
    for name, query in queries(of_kind(charts["keda"], "ScaledObject")).items():
        assert set(re.findall(r'namespace="(.*?)"', query)) == {"longflow"}, name
        assert query.count('priority=""') == query.count("sglang:")
        (pattern,) = set(re.findall(r'pod=~"(.*?)"', query))
        assert re.fullmatch(pattern, "longflow-5d8f7c9b44-x2v7k")
        for other in ("longflow-router-5d8f7c9b44-x2v7k", "longflow2-5d8f7c9b44-x2v7k"):
            assert not re.fullmatch(pattern, other)


def test_kustomize_puts_another_namespace_into_the_queries(tmp_path):
    shutil.copytree(DEPLOY / "kustomize", tmp_path / "kustomize")
    for name in OVERLAYS:
        file = tmp_path / f"kustomize/overlays/{name}/kustomization.yaml"
        file.write_text(file.read_text().replace("namespace: longflow", "namespace: chat"))
    for name in ("keda", "router-keda"):
        objects = kustomize(tmp_path / "kustomize/overlays" / name)
        found = queries(of_kind(objects, "ScaledObject"))
        assert len(found) == 2
        for query in found.values():
            assert set(re.findall(r'namespace="(.*?)"', query)) == {"chat"}
        (monitor, *_) = of_kind(objects, "PodMonitor")
        assert monitor["metadata"]["namespace"] == "chat"
        for binding in of_kind(objects, "RoleBinding"):
            assert [subject["namespace"] for subject in binding["subjects"]] == ["chat"]


@pytest.mark.parametrize(
    ("rows", "percents", "load", "queue"),
    [(160, {}, 128, 64), (187, {}, 149, 74), (1, {}, 1, 1), (3, {"targetPercent": 75}, 2, 1)],
)
def test_thresholds(tools, rows, percents, load, queue):
    for kind in ("keda", "hpa"):
        scaling = {"kind": kind, "rowsPerReplica": rows, **percents}
        values = {"autoscaling": scaling, "config": {"max-running-requests": rows}}
        objects = helm(tools, values)
        if kind == "keda":
            (scaler,) = of_kind(objects, "ScaledObject")
            found = [trigger["metadata"]["threshold"] for trigger in scaler["spec"]["triggers"]]
        else:
            (scaler,) = of_kind(objects, "HorizontalPodAutoscaler")
            found = [m["pods"]["target"]["averageValue"] for m in scaler["spec"]["metrics"]]
        assert found == [str(load), str(queue)]


def test_keda_traps(charts):
    (scaler,) = of_kind(charts["keda"], "ScaledObject")
    assert scaler["spec"]["minReplicaCount"] >= 1
    assert scaler["spec"]["fallback"]["behavior"] == "currentReplicasIfHigher"
    for trigger in scaler["spec"]["triggers"]:
        assert trigger["metadata"]["ignoreNullValues"] == "false"
        assert trigger["metricType"] == "AverageValue"  # the fallback works for no other
    for name, objects in charts.items():
        scalers = of_kind(objects, "ScaledObject") + of_kind(objects, "HorizontalPodAutoscaler")
        assert len(scalers) <= 1, name
        assert ("replicas" in server_of(objects)["spec"]) == (not scalers), name


def test_the_adapter_serves_what_the_hpa_asks_for(charts):
    (scaler,) = of_kind(charts["hpa"], "HorizontalPodAutoscaler")
    asked = [metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]]
    served = [rule["name"]["as"] for rule in yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]]
    assert asked == served and not any(":" in name for name in served)


@pytest.mark.parametrize("name", [*OVERLAYS, "secured", "existing claim", "open", ""])
def test_selectors_and_names_meet(charts, name):
    objects = charts[name]
    pods = {}
    for deployment in of_kind(objects, "Deployment"):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
        pods[name_of(deployment)] = labels
    assert pods[name_of(server_of(objects))]["inference.networking.k8s.io/engine-type"] == "sglang"

    def chosen(selector: dict) -> int:
        return sum(selector.items() <= labels.items() for labels in pods.values())

    for content in objects:
        spec = content.get("spec", {})
        if content["kind"] == "Service":
            assert chosen(spec["selector"]) == 1
        if content["kind"] in ("PodDisruptionBudget", "PodMonitor", "InferencePool"):
            assert chosen(spec["selector"]["matchLabels"]) == 1
        if content["kind"] == "ServiceMonitor":
            (service,) = (
                service
                for service in of_kind(objects, "Service")
                if spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
            )
            ports = {port["name"] for port in service["spec"]["ports"]}
            assert {endpoint["port"] for endpoint in spec["endpoints"]} <= ports
        if content["kind"] == "NetworkPolicy":
            assert chosen(spec["podSelector"]["matchLabels"]) == 1
        if content["kind"] in ("ScaledObject", "HorizontalPodAutoscaler"):
            assert spec["scaleTargetRef"]["name"] == server_of(objects)["metadata"]["name"]
    names = {name_of(content) for content in objects} | {"PersistentVolumeClaim/weights"}
    for deployment in of_kind(objects, "Deployment"):
        pod = pod_of(deployment)
        assert f"ServiceAccount/{pod['serviceAccountName']}" in names
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        assert set(volumes) == {mount["name"] for mount in container["volumeMounts"]}
        for volume in volumes.values():
            if "configMap" in volume:
                assert f"ConfigMap/{volume['configMap']['name']}" in names
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert f"PersistentVolumeClaim/{claim}" in names
    for monitor in of_kind(objects, "PodMonitor") + of_kind(objects, "ServiceMonitor"):
        if "jobLabel" not in monitor["spec"]:  # the alert rules' job
            assert "longflow" in monitor["metadata"]["name"]


@pytest.mark.parametrize("name", ["", "router-keda", "secured", "cpu"])
def test_pods_are_locked_down_and_have_time_to_drain(charts, name):
    for deployment in of_kind(charts[name], "Deployment"):
        pod = pod_of(deployment)
        security = pod["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] == security["fsGroup"] == 1000
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["enableServiceLinks"] is False
        assert not any(pod.get(key) for key in ("hostNetwork", "hostIPC", "hostPID"))
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        sleep, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
        assert sleep == "sleep"
        assert pod["terminationGracePeriodSeconds"] >= int(seconds) + 1800 + 20
    container = pod_of(server_of(charts[name]))["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        # SGLang itself gives up after 20 s; the default of 1 s could never pass.
        assert container[probe]["timeoutSeconds"] > 20
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 3600
    liveness = container["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 120


def test_secrets_are_references(charts):
    pods = [pod_of(deployment) for deployment in of_kind(charts["secured"], "Deployment")]
    for pod in pods:
        (container,) = pod["containers"]
        # `longflow serve` reads the variable; the router takes a flag alone.
        assert ("--api-key=$(LONGFLOW_API_KEY)" in container["args"]) == (
            container["name"] == "router"
        )
        keys = {entry["name"]: entry.get("valueFrom") for entry in container["env"]}
        assert keys["LONGFLOW_API_KEY"] == {"secretKeyRef": {"name": "key", "key": "bearer"}}
    (server,) = pod_of(server_of(charts["secured"]))["containers"]
    token = {"secretKeyRef": {"name": "hf", "key": "token"}}
    assert {"name": "HF_TOKEN", "valueFrom": token} in server["env"]
    assert server["image"] == "registry:5000/x@sha256:" + "0" * 64
    assert of_kind(charts["secured"], "PersistentVolumeClaim") == []


@pytest.mark.parametrize("name", ["", "cpu", "tp2", "secured"])
def test_longflow_serve_takes_the_arguments(charts, name, tmp_path):
    """Every key and flag is an argument of SGLang or the plugin, with the right type."""
    (config,) = of_kind(charts[name], "ConfigMap")
    (tmp_path / "config.yaml").write_text(config["data"]["config.yaml"])
    serve, *arguments = pod_of(server_of(charts[name]))["containers"][0]["args"]
    assert serve == "serve"
    place = {"/etc/longflow/config.yaml": str(tmp_path / "config.yaml")}
    settings = read_settings([place.get(word, word) for word in arguments])
    assert settings.notes == []
    assert (settings.host, settings.port) == ("0.0.0.0", 30000)
    assert settings.values["enable_metrics"] is True
    assert settings.values.get("tp_size", 1) == (2 if name == "tp2" else 1)


def test_the_default_configuration_is_the_shipped_one():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    shipped = yaml.safe_load((ROOT / "configs/qwen3-1.7b-h100.yaml").read_text())
    assert values["config"] == shipped
    assert values["autoscaling"]["rowsPerReplica"] == shipped["max-running-requests"]


@pytest.mark.parametrize("package", ["sglang_router", "smg"])
def test_the_router_takes_its_arguments(tools, charts, package):
    (router,) = (d for d in of_kind(charts["secured"], "Deployment") if "router" in name_of(d))
    (container,) = pod_of(router)["containers"]
    assert container["command"] == ["python3", "-m", "sglang_router.launch_router"]
    code = f"""
import argparse, json, sys
from {package}.router_args import RouterArgs
parser = argparse.ArgumentParser(allow_abbrev=False)
RouterArgs.add_cli_args(parser)
args = RouterArgs.from_cli_args(parser.parse_args(sys.argv[1:]))
names = ("policy", "service_discovery_port", "selector", "balance_abs_threshold")
print(json.dumps([args.service_discovery, *(getattr(args, name) for name in names)]))
"""
    done = subprocess.run(
        [tools / "venv/bin/python", "-c", code, *container["args"]], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    discovery, policy, port, selector, difference = json.loads(done.stdout.splitlines()[-1])
    server = server_of(charts["secured"])
    assert (policy, discovery, difference) == ("cache_aware", True, 16)
    assert port == pod_of(server)["containers"][0]["ports"][0]["containerPort"]
    assert selector == server["spec"]["selector"]["matchLabels"]
    (role,) = of_kind(charts["secured"], "Role")
    pods = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    assert role["rules"] == [pods]


@pytest.mark.parametrize("image", ["cpu", "gpu"])
def test_the_image_agrees(charts, image):
    """User, port, entry point, and every cache in a place that can be written to."""
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    (stage,) = [s for s in stages if re.match(rf"\S+ AS {image}\n", s)]
    pod = pod_of(server_of(charts[""]))
    (container,) = pod["containers"]
    security = pod["securityContext"]
    assert f"USER {security['runAsUser']}:{security['runAsGroup']}\n" in stage
    assert f"EXPOSE {container['ports'][0]['containerPort']}\n" in stage
    assert 'ENTRYPOINT ["tini", "--", "longflow"]' in stage
    assert "command" not in container
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    variables = re.search(r"^ENV ((?:.*\\\n)*.*)", stage, flags=re.MULTILINE).group(1)
    places = re.findall(r"=(/\S+)", variables)
    assert len(places) >= 6
    for place in places:
        assert any(place == mount or place.startswith(mount + "/") for mount in mounts), place


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"replica": 2}, "replica"),
        ({"gpus": -1}, "gpus"),
        ({"gpus": "two"}, "gpus"),
        ({"modelCache": {"size": "20 GB"}}, "modelCache"),
        ({"autoscaling": {"kind": "vpa"}}, "kind"),
        ({"autoscaling": {"minReplicas": 0}}, "minReplicas"),
        ({"router": {"policy": "best"}}, "policy"),
        (
            {"replicas": 2, "modelCache": {"accessMode": "ReadWriteOnce"}},
            "modelCache.accessMode=ReadWriteOnce: up to 2 servers need ReadWriteMany",
        ),
        (
            {"modelCache": {"kind": "emptyDir", "existingClaim": "w"}},
            "modelCache.existingClaim=w: needs modelCache.kind=pvc",
        ),
        (
            {"autoscaling": {"kind": "keda", "minReplicas": 5, "maxReplicas": 4}},
            "autoscaling.minReplicas=5: expected at most autoscaling.maxReplicas=4",
        ),
        (
            {"autoscaling": {"kind": "hpa", "rowsPerReplica": 161}},
            "autoscaling.rowsPerReplica=161: a server runs at most config.max-running-requests=160",
        ),
        (
            {"autoscaling": {"kind": "keda"}, "config": {"enable-metrics": False}},
            "autoscaling.kind=keda: needs config.enable-metrics=true",
        ),
        (
            {"inferencePool": {"enabled": True}, "router": {"enabled": True}},
            "router.enabled=true: the pool's endpoint picker chooses the server",
        ),
        (
            {"inferencePool": {"enabled": True}, "config": {"kv-budget": 0}},
            "inferencePool.enabled=true: needs config.kv-budget over 0",
        ),
        (
            {"inferencePool": {"enabled": True}, "config": {"enable-metrics": False}},
            "inferencePool.enabled=true: needs config.enable-metrics=true",
        ),
        ({"inferencePool": {"parser": "json"}}, "parser"),
        ({"httpRoute": {"enabled": True}}, "httpRoute.gateway.name: not set"),
        ({"httpRoute": {"paths": []}}, "paths"),
        ({"httpRoute": {"requestTimeout": "1 hour"}}, "requestTimeout"),
        (
            {
                "httpRoute": {"enabled": True, "gateway": {"name": "g"}},
                "shutdown": {"longestGenerationSeconds": 50000},
            },
            "shutdown.longestGenerationSeconds=50000: twice that is over 99999 s",
        ),
        (
            {"monitoring": {"serviceMonitor": True}},
            "monitoring.serviceMonitor=true: needs monitoring.enabled=true",
        ),
        ({"config": {"model-path": None}}, "config.model-path: not set"),
        ({"config": {"tp-size": 2}}, "config.tp-size: the chart sets it"),
        ({"config": {"kv-bugdet": 5}}, "kv-bugdet"),
        ({"config": {"kv-budget": "x"}}, "kv-budget"),
        ({"config": {"kv-policy": "longflw"}}, "kv-policy"),
        ({"config": {"page-size": 16}}, "page-size"),
        ({"config": {"max-running-requests": "many"}}, "max-running-requests"),
        ({"secrets": {"apiKeyKey": "a key"}}, "apiKeyKey"),
    ],
)
def test_helm_refuses(tools, values, text):
    assert text in helm_error(tools, values)


def test_helm_lint_knows_the_servers_arguments(tools):
    """What `helm lint` says before anything is installed; `helm template` is above."""
    for config in ({"kv-bugdet": 5}, {"kv-budget": "x"}, {"page-size": 16}):
        (result,) = tool(tools, "lint", [{"chart": str(CHART), "values": {"config": config}}])
        (key,) = config
        assert any("'/config" in e and key in e for e in result["errors"]), result
    stock = {
        "config": {
            "kv-budget": None,
            "page-size": 16,
            "kv-policy": None,
            "kv-budget-min": None,
            "kv-budget-max": None,
            "kv-budget-allow-full": None,
        }
    }
    assert helm(tools, stock)  # pages of SGLang's choice where there is no budget


def test_helm_lint(tools):
    values = [None, SECURED, EXISTING_CLAIM, OPEN, *map(example, OVERLAYS)]
    for result in tool(tools, "lint", [{"chart": str(CHART), "values": v} for v in values]):
        assert result["errors"] in ([], None)
        assert [m["error"] for m in result["messages"]] == ["icon is recommended"]


def test_yamllint(tools):
    chart = [CHART / name for name in ("Chart.yaml", "values.yaml", "examples", "files")]
    command = [tools / "venv/bin/yamllint", "-s", "-c", DEPLOY / "yamllint.yaml"]
    done = subprocess.run([*command, DEPLOY / "kustomize", *chart], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
