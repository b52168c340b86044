# SPDX-License-Identifier: Apache-2.0
"""The ScaledObject that the chart renders: its queries, thresholds, bounds and behavior."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import yaml

from autoscale_hpa import Autoscaler, Metric, direction

CHART = Path(__file__).parents[1] / "deploy" / "helm" / "sglang-longflow"
RELEASE, NAMESPACE = "longflow", "serving"
_RENDER = """
import json, sys, helm_python
chart, release, namespace, values = sys.argv[1:]
with helm_python.Chart.load(chart) as loaded:
    rendered = loaded.render(json.loads(values), name=release, namespace=namespace)
print(json.dumps(rendered))
"""


@dataclass(frozen=True)
class ScaledObject:
    """What an autoscaler needs of it."""

    queries: dict[str, str]
    thresholds: dict[str, float]
    min_replicas: int
    max_replicas: int
    behavior: dict

    def autoscaler(self) -> Autoscaler:
        """As the HPA that KEDA makes of it. Windows default to those of Kubernetes."""
        return Autoscaler(
            metrics=tuple(Metric(name, target) for name, target in self.thresholds.items()),
            min_replicas=self.min_replicas,
            max_replicas=self.max_replicas,
            up=direction(self.behavior.get("scaleUp", {}), 0),
            down=direction(self.behavior.get("scaleDown", {}), 300),
        )


def render(tools: Path, values: dict, chart: Path = CHART) -> list[dict]:
    """Every object of the chart for these values."""
    command = [tools / "venv/bin/python", "-c", _RENDER, chart, RELEASE, NAMESPACE]
    done = subprocess.run(
        [*map(str, command), json.dumps(values)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{chart} cannot be rendered: {done.stderr.strip()[-2000:]}")
    texts = [text for name, text in json.loads(done.stdout).items() if name.endswith(".yaml")]
    return [found for text in texts for found in yaml.safe_load_all(text) if found]


def scaled_object(tools: Path, chart: Path = CHART, **autoscaling) -> ScaledObject:
    """The rendered ScaledObject; keywords are values under ``autoscaling``."""
    values = {"autoscaling": {"kind": "keda", **autoscaling}}
    (found,) = (o for o in render(tools, values, chart) if o["kind"] == "ScaledObject")
    spec = found["spec"]
    triggers = spec["triggers"]
    other = [t["type"] for t in triggers if t["type"] != "prometheus"]
    kinds = [t.get("metricType", "AverageValue") for t in triggers]
    if other or set(kinds) != {"AverageValue"}:
        raise RuntimeError(f"only Prometheus averages are simulated here: {triggers}")
    advanced = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {})
    return ScaledObject(
        queries={t["name"]: t["metadata"]["query"] for t in triggers},
        thresholds={t["name"]: float(t["metadata"]["threshold"]) for t in triggers},
        min_replicas=spec["minReplicaCount"],
        max_replicas=spec["maxReplicaCount"],
        behavior=advanced.get("behavior", {}),
    )
