# SPDX-License-Identifier: Apache-2.0
"""What `longflow render` writes is valid, and the same by kustomize and by Helm."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from manifests import DEPLOY, helm, kustomize, name_of, normal, problems, queries, tool
from sglang_longflow.cli.main import main
from sglang_longflow.server.settings import read_settings

pytestmark = pytest.mark.deploy
LARGE = (
    """--model llama-3.3-70b-instruct --gpu H200-141G --budget 2048 --tp 2 --router
    --hf-secret hf --api-key-secret clients:bearer
    --replicas-min 2 --replicas-max 6 --kv-cache-dtype fp8_e4m3 --prometheus http://prom:80
    --image registry:5000/longflow@sha256:"""
    + "a" * 64
)
FIXED = """--model qwen3-8b --gpu A100-40G --users 30 --replicas-max 1 --router
    --max-total-tokens 90000 --node-selector cloud.google.com/gke-accelerator=nvidia-tesla-a100
    --image localhost:5001/longflow:1 --reasoning-parser none"""
RENDERED = {
    "qwen3-1.7b": "--model qwen3-1.7b --gpu H100-80G --budget 3200".split(),
    "llama-70b": LARGE.split(),
    "fixed": FIXED.split(),
}


@pytest.fixture(scope="module", params=RENDERED)
def rendered(request, tmp_path_factory, tools):
    """Folder, and the objects by kustomize and by Helm, in another namespace than the default."""
    folder = tmp_path_factory.mktemp(request.param)
    for target in ("kustomize", "helm"):
        size = ["--namespace", "chat", *RENDERED[request.param]]
        assert main(["render", "--target", target, "--out", f"{folder}/{target}", *size]) == 0
    values = yaml.safe_load((folder / "helm/values.yaml").read_text())
    chart = folder / "helm/sglang-longflow"
    return folder, kustomize(folder / "kustomize"), helm(tools, values, chart, namespace="chat")


def test_kustomize_and_helm_make_the_same_objects(rendered):
    _, by_kustomize, by_helm = rendered
    assert normal(by_kustomize, "chat") == normal(by_helm, "chat")


def test_objects_are_valid(rendered, tools):
    _, by_kustomize, _ = rendered
    assert problems(tools, by_kustomize) == []
    texts = queries(by_kustomize)
    assert set(tool(tools, "promql", list(texts.values()))) <= {None}
    assert all('namespace="chat"' in q for name, q in texts.items() if "ScaledObject" in name)


def test_pods_are_pinned_to_the_card(rendered):
    folder, objects, _ = rendered
    (server,) = (c for c in objects if name_of(c) == "Deployment/longflow")
    pod = server["spec"]["template"]["spec"]
    card = {"qwen3-1.7b": "NVIDIA-H100-80GB-HBM3", "llama-70b": "NVIDIA-H200"}.get(folder.name[:-1])
    if card is None:
        assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}
        assert "affinity" not in pod
        return
    assert "nodeSelector" not in pod
    assert pod["affinity"]["nodeAffinity"] == {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [
                {
                    "matchExpressions": [
                        {"key": "nvidia.com/gpu.product", "operator": "In", "values": [card]}
                    ]
                }
            ]
        }
    }


def test_pods_read_their_secrets(rendered):
    folder, objects, _ = rendered
    pods = {
        name_of(content): content["spec"]["template"]["spec"]["containers"][0]
        for content in objects
        if content["kind"] == "Deployment"
    }
    found = {
        (name, variable["name"]): variable["valueFrom"]["secretKeyRef"]
        for name, container in pods.items()
        for variable in container.get("env", [])
        if "secretKeyRef" in variable.get("valueFrom", {})
    }
    has_secrets = folder.name.startswith("llama-70b")
    key = {"name": "clients", "key": "bearer"}
    assert found == (
        {
            ("Deployment/longflow", "HF_TOKEN"): {"name": "hf", "key": "token"},
            ("Deployment/longflow", "LONGFLOW_API_KEY"): key,
            ("Deployment/longflow-router", "LONGFLOW_API_KEY"): key,
        }
        if has_secrets
        else {}
    )
    for container in pods.values():
        # `longflow serve` reads the variable; the router takes a flag alone.
        is_told = has_secrets and container["name"] == "router"
        assert ("--api-key=$(LONGFLOW_API_KEY)" in container["args"]) == is_told
        assert "POD_NAMESPACE" in str(container.get("env")) or container["name"] == "server"


def test_longflow_serve_takes_the_configuration(rendered, tmp_path):
    folder, objects, _ = rendered
    (server,) = (c for c in objects if name_of(c) == "Deployment/longflow")
    arguments = server["spec"]["template"]["spec"]["containers"][0]["args"][1:]
    config = str(folder / "kustomize/config.yaml")
    settings = read_settings([config if "/etc/" in word else word for word in arguments])
    assert settings.notes == []
    assert settings.values["max_running_requests"] > 0


@pytest.fixture(scope="module")
def keda(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("keda")
    argv = ["render", "--target", "keda", "--out", str(folder), "--name", "llm"]
    assert main([*argv, *RENDERED["qwen3-1.7b"]]) == 0
    return folder


def test_a_scaledobject_alone_is_valid(keda, tools):
    objects = [yaml.safe_load((keda / "scaledobject.yaml").read_text())]
    assert problems(tools, objects) == []
    assert set(tool(tools, "promql", list(queries(objects).values()))) == {None}


@pytest.mark.parametrize("tp", [1, 2])
def test_compose_is_valid(tools, tmp_path, tp):
    size = [*RENDERED["qwen3-1.7b"], "--tp", str(tp)]
    assert main(["render", "--target", "compose", "--out", str(tmp_path), *size]) == 0
    files = sorted((tmp_path / "compose").glob("*.yaml"))
    assert [file.name for file in files] == ["compose.yaml", "services.yaml"]
    check = [tools / "venv/bin/check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    settings = read_settings(["--config", str(tmp_path / "config.yaml")])
    assert settings.notes == [] and settings.values.get("tp_size", 1) == tp


def test_written_yaml_is_tidy(rendered, keda, tools):
    folder, _, _ = rendered
    command = [tools / "venv/bin/yamllint", "-s", "-c", DEPLOY / "yamllint.yaml"]
    places = [folder / "kustomize", folder / "helm/values.yaml", keda]
    done = subprocess.run([*command, *places], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def behind(values: dict, more: dict) -> dict:
    """As Helm merges a second file of values."""
    merged = dict(values)
    for key, value in more.items():
        below = merged.get(key)
        nested = isinstance(value, dict) and isinstance(below, dict)
        merged[key] = behind(below, value) if nested else value
    return merged


def test_a_gateway_and_models_of_a_claim_go_behind_the_rendered_values(tmp_path, tools):
    """As docs/deploy/gateway.md and air-gapped.md say; the numbers stay."""
    command = f"render --target helm --out {tmp_path}/chat".split()
    assert main([*command, *RENDERED["qwen3-1.7b"]]) == 0
    values = yaml.safe_load((tmp_path / "chat/values.yaml").read_text())
    gateway = (DEPLOY / "helm/sglang-longflow/examples/inference-pool.yaml").read_text()
    claim = {
        "config": {"model-path": "/cache/huggingface/m"},
        "modelCache": {"existingClaim": "models"},
    }
    values = behind(behind(values, yaml.safe_load(gateway)), claim)
    objects = helm(tools, values, tmp_path / "chat/sglang-longflow")
    assert problems(tools, objects) == []
    kinds = {content["kind"] for content in objects}
    assert {"InferencePool", "HTTPRoute", "ScaledObject"} <= kinds
    assert "PersistentVolumeClaim" not in kinds
    (config,) = (c["data"]["config.yaml"] for c in objects if c["kind"] == "ConfigMap")
    served = yaml.safe_load(config)
    assert (served["model-path"], served["kv-planned-rows"]) == ("/cache/huggingface/m", 187)
