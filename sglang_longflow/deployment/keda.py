# SPDX-License-Identifier: Apache-2.0
"""`longflow render --target keda`: a ScaledObject for a Deployment that exists."""

from __future__ import annotations

from typing import Any

from sglang_longflow.deployment.files import Output, dump, load
from sglang_longflow.deployment.settings import Settings
from sglang_longflow.deployment.sizing import Sizing

OBJECT = "kustomize/components/keda/objects.yaml"
_SHIPPED = {'namespace="longflow"': 'namespace="{}"', 'pod=~"longflow-': 'pod=~"{}-'}


def triggers(sizing: Sizing, settings: Settings) -> list[dict[str, Any]]:
    """Those of the shipped object with the numbers, names and address of this deployment."""
    thresholds = {"load": sizing.load_threshold, "queue": sizing.queue_threshold}
    found: list[dict[str, Any]] = load(OBJECT)["spec"]["triggers"]
    for trigger in found:
        metadata = trigger["metadata"]
        metadata["serverAddress"] = settings.prometheus
        metadata["threshold"] = str(thresholds[trigger["name"]])
        for (old, new), word in zip(_SHIPPED.items(), (settings.namespace, settings.name)):
            metadata["query"] = metadata["query"].replace(old, new.format(word))
    return found


def scaled_object(sizing: Sizing, settings: Settings) -> dict[str, Any]:
    """The shipped ScaledObject, for this deployment."""
    content: dict[str, Any] = load(OBJECT)
    content["metadata"] = {"name": settings.name, "namespace": settings.namespace}
    spec = content["spec"]
    spec["scaleTargetRef"]["name"] = settings.name
    spec["minReplicaCount"], spec["maxReplicaCount"] = sizing.replicas_min, sizing.replicas_max
    spec["fallback"]["replicas"] = sizing.replicas_min
    spec["triggers"] = triggers(sizing, settings)
    return content


def output(sizing: Sizing, settings: Settings) -> tuple[Output, list[str]]:
    """Files, and the commands that use them."""
    content = dump(scaled_object(sizing, settings), settings.note)
    return Output(texts={"scaledobject.yaml": content}), [
        f"kubectl apply -f {settings.out}/scaledobject.yaml"
    ]
