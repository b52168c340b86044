# SPDX-License-Identifier: Apache-2.0
"""Objects from kustomize and Helm, and validators for them."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
DEPLOY = HERE.parents[1] / "deploy"
CHART = DEPLOY / "helm/sglang-longflow"
#: Of operators whose types npm has, and of those whose CRDs are in crds/.
TYPED = ("ScaledObject", "PodMonitor", "ServiceMonitor", "PrometheusRule")
CRDS = tuple(sorted(path.stem for path in (HERE / "crds").glob("*.json")))
CUSTOM = (*TYPED, *CRDS)
_HASHED = re.compile(r"-config-[a-z0-9]{10}$")
_OF_HELM = ("helm.sh/chart", "app.kubernetes.io/managed-by", "helm.sh/resource-policy")

Object = dict[str, Any]


def tool(tools: Path, task: str, content: Any) -> Any:
    """A task of manifest_tools.py."""
    done = subprocess.run(
        [tools / "venv/bin/python", HERE / "manifest_tools.py", task],
        input=json.dumps(content),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def helm(tools: Path, values: Object | None = None, chart: Path = CHART, **names: str) -> list:
    job = {"chart": str(chart), "values": values, "name": "longflow", "namespace": "longflow"}
    (found,) = tool(tools, "helm", [job | names])
    assert "error" not in found, found
    return found["objects"]


def helm_error(tools: Path, values: Object) -> str:
    job = {"chart": str(CHART), "values": values, "name": "longflow", "namespace": "longflow"}
    (found,) = tool(tools, "helm", [job])
    return found.get("error", "")


def kustomize(folder: Path) -> list[Object]:
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def crd_problems(tools: Path, objects: list[Object]) -> list[str | None]:
    done = subprocess.run(
        ["node", HERE / "crds.mjs", tools / "node"],
        input=json.dumps(objects),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def problems(tools: Path, objects: list[Object]) -> list[str]:
    """What the schemas say against any of the objects."""
    custom = [content for content in objects if content["kind"] in TYPED]
    by_crd = [content for content in objects if content["kind"] in CRDS]
    builtin = [content for content in objects if content["kind"] not in CUSTOM]
    found = [
        f"{name_of(content)}: {problem}"
        for task, some in (("schema", builtin), ("crd", by_crd))
        for content, many in zip(some, tool(tools, task, some))
        for problem in many
    ]
    if custom:
        found += [
            f"{name_of(content)}: {problem}"
            for content, problem in zip(custom, crd_problems(tools, custom))
            if problem is not None
        ]
    return found


def name_of(content: Object) -> str:
    return f"{content['kind']}/{content['metadata']['name']}"


def normal(objects: list[Object], namespace: str = "longflow") -> dict[str, Object]:
    """By name, less what only Helm or only kustomize writes."""
    found = {}
    for original in objects:
        content = copy.deepcopy(original)
        metadata = content["metadata"]
        assert metadata.pop("namespace", namespace) == namespace
        metadata["name"] = _HASHED.sub("-config", metadata["name"])
        templates = [content["spec"]["template"]] if content["kind"] == "Deployment" else []
        for part in (metadata, *(template["metadata"] for template in templates)):
            for group in ("labels", "annotations"):
                for key in (*_OF_HELM, "checksum/config"):
                    part.get(group, {}).pop(key, None)
                if part.get(group) == {}:
                    del part[group]
        for template in templates:
            # Merged by name: what is patched comes first.
            template["spec"]["volumes"].sort(key=lambda volume: volume["name"])
            for container in template["spec"]["containers"]:
                container.get("env", []).sort(key=lambda variable: variable["name"])
            for volume in template["spec"]["volumes"]:
                if "configMap" in volume:
                    name = volume["configMap"]["name"]
                    volume["configMap"]["name"] = _HASHED.sub("-config", name)
        if content["kind"] == "ConfigMap":  # comments and order are free in YAML
            content["data"] = {k: yaml.safe_load(v) for k, v in content["data"].items()}
        key = name_of(content)
        assert key not in found, f"{key} twice"
        found[key] = content
    return found


def queries(objects: list[Object]) -> dict[str, str]:
    """PromQL by where it is."""
    found = {}
    for content in objects:
        if content["kind"] == "ScaledObject":
            for trigger in content["spec"]["triggers"]:
                found[f"{name_of(content)} {trigger['name']}"] = trigger["metadata"]["query"]
        if content["kind"] == "PrometheusRule":
            for group in content["spec"]["groups"]:
                for rule in group["rules"]:
                    title = rule.get("alert") or rule["record"]
                    found[f"{name_of(content)} {title}"] = rule["expr"]
    return found
