# SPDX-License-Identifier: Apache-2.0
"""`longflow render --target helm`: the chart, and a values file."""

from __future__ import annotations

from typing import Any

from sglang_longflow.deployment.files import Output, dump, load
from sglang_longflow.deployment.settings import Settings
from sglang_longflow.deployment.sizing import Sizing

CHART = "helm/sglang-longflow"


def values(sizing: Sizing, settings: Settings) -> dict[str, Any]:
    """Values of the chart that differ from its own."""
    config = sizing.server_config()
    # Helm merges maps: a key of the chart's configuration goes only if it is set to null.
    others = [key for key in load(f"{CHART}/values.yaml")["config"] if key not in config]
    memory, limit = sizing.memory_request_gib, sizing.memory_limit_gib
    found: dict[str, Any] = {
        "image": {"repository": settings.image_name, "tag": settings.image_tag},
        "replicas": sizing.replicas_min,
        "config": config | dict.fromkeys(others),
        "gpus": sizing.gpus,
        "resources": {
            "requests": {"cpu": str(sizing.cpus), "memory": f"{memory}Gi"},
            "limits": {"memory": f"{limit}Gi"},
        },
        "sharedMemory": f"{sizing.shared_memory_gib}Gi",
        "modelCache": {"size": f"{sizing.cache_gib}Gi"},
        "shutdown": {"longestGenerationSeconds": sizing.longest_generation_s},
    }
    found["autoscaling"] = {"kind": "none", "rowsPerReplica": sizing.rows}
    if sizing.autoscaled:
        found["monitoring"] = {"enabled": True}
        found["autoscaling"] |= {
            "kind": "keda",
            "minReplicas": sizing.replicas_min,
            "maxReplicas": sizing.replicas_max,
            "keda": {"prometheusAddress": settings.prometheus},
        }
    if settings.hf_secret:
        token = {"huggingFace": settings.hf_secret.name, "huggingFaceKey": settings.hf_secret.key}
        found["secrets"] = token
    if settings.api_key_secret:
        key = {"apiKey": settings.api_key_secret.name, "apiKeyKey": settings.api_key_secret.key}
        found["secrets"] = found.get("secrets", {}) | key
    found |= settings.placement
    if settings.router:
        found["router"] = {"enabled": True}
    return found


def output(sizing: Sizing, settings: Settings) -> tuple[Output, list[str]]:
    """Files, and the commands that use them."""
    files = Output(
        texts={"values.yaml": dump(values(sizing, settings), settings.note)},
        copies={"sglang-longflow": CHART},
        without=("examples",),
    )
    name, namespace = settings.name, settings.namespace
    before = settings.secret_commands
    return files, [
        *(before if len(before) > 1 else []),  # helm makes the namespace itself
        f"helm upgrade --install {name} {settings.out}/sglang-longflow -n {namespace} "
        f"--create-namespace -f {settings.out}/values.yaml",
    ]
