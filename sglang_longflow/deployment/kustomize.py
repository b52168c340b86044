# SPDX-License-Identifier: Apache-2.0
"""`longflow render --target kustomize`: base, components, and one kustomization over them."""

from __future__ import annotations

from typing import Any

from sglang_longflow.deployment.files import Output, dump, load, load_all
from sglang_longflow.deployment.helm import CHART
from sglang_longflow.deployment.keda import scaled_object
from sglang_longflow.deployment.secrets import KEY_VARIABLE, TOKEN_VARIABLE
from sglang_longflow.deployment.settings import Settings
from sglang_longflow.deployment.sizing import BALANCE_PERCENT, GRACE_MARGIN_S, Sizing, part_of
from sglang_longflow.errors import ConfigError

KUSTOMIZE = "kustomize"
KEY_ARGUMENT = f"--api-key=$({KEY_VARIABLE})"
BASE_IMAGE = "sglang-longflow"
#: Every object of base and components has this name, and their PromQL knows their pods by it.
NAME = "longflow"


def _components(sizing: Sizing, settings: Settings) -> list[str]:
    wanted = {
        "monitoring": sizing.autoscaled,
        "shared-cache": sizing.replicas_max > 1,
        "router": settings.router,
        "router-monitoring": settings.router and sizing.autoscaled,
        "keda": sizing.autoscaled,
    }
    return [name for name, is_wanted in wanted.items() if is_wanted]


def _patch(kind: str, version: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _pod(sizing: Sizing, container: dict[str, Any], **more: Any) -> dict[str, Any]:
    stop = load(f"{CHART}/values.yaml")["shutdown"]["preStopSeconds"]
    grace = stop + sizing.longest_generation_s + GRACE_MARGIN_S
    pod = {"terminationGracePeriodSeconds": grace, "containers": [container], **more}
    return {"template": {"spec": pod}}


def _server(sizing: Sizing, settings: Settings) -> dict[str, Any]:
    shipped = load(f"{KUSTOMIZE}/base/deployment.yaml")["spec"]["template"]["spec"]
    (server,) = shipped["containers"]
    gpus = {load(f"{CHART}/values.yaml")["gpuResource"]: sizing.gpus}
    requests = {"cpu": str(sizing.cpus), "memory": f"{sizing.memory_request_gib}Gi", **gpus}
    limits = {"memory": f"{sizing.memory_limit_gib}Gi", **gpus}
    container: dict[str, Any] = {
        "name": "server",
        "resources": {"requests": requests, "limits": limits},
    }
    more = [f"--tp-size={sizing.gpus}"] if sizing.gpus > 1 else []
    secrets = {TOKEN_VARIABLE: settings.hf_secret, KEY_VARIABLE: settings.api_key_secret}
    if variables := [key.variable(name) for name, key in secrets.items() if key]:
        container["env"] = variables  # `longflow serve` reads the key
    if more:  # a patch replaces the whole list
        container["args"] = [*server["args"], *more]
    shared = {"name": "shm", "emptyDir": {"sizeLimit": f"{sizing.shared_memory_gib}Gi"}}
    pod = _pod(sizing, container, **settings.placement, volumes=[shared])
    return _patch("Deployment", "apps/v1", NAME, pod)


def _router(sizing: Sizing, settings: Settings) -> dict[str, Any]:
    """The router waits as long as the servers take, and spreads by their rows."""
    objects = load_all(f"{KUSTOMIZE}/components/router/objects.yaml")
    (shipped,) = [content for content in objects if content["kind"] == "Deployment"]
    args = list(shipped["spec"]["template"]["spec"]["containers"][0]["args"])
    seconds = sizing.longest_generation_s
    numbers = {
        "--balance-abs-threshold": part_of(sizing.rows, BALANCE_PERCENT),
        "--request-timeout-secs": 2 * seconds,
        "--shutdown-grace-period-secs": seconds,
    }
    for flag, value in numbers.items():
        (place,) = [i for i, word in enumerate(args) if word.startswith(f"{flag}=")]
        args[place] = f"{flag}={value}"
    container: dict[str, Any] = {"name": "router", "args": args}
    if key := settings.api_key_secret:  # of its clients, and for the servers
        args.append(KEY_ARGUMENT)
        container["env"] = [key.variable(KEY_VARIABLE)]
    return _patch("Deployment", "apps/v1", f"{NAME}-router", _pod(sizing, container))


def _patches(sizing: Sizing, settings: Settings) -> dict[str, Any]:
    """Patches by file name."""
    storage = {"resources": {"requests": {"storage": f"{sizing.cache_gib}Gi"}}}
    found = {
        "server": _server(sizing, settings),
        "models": _patch("PersistentVolumeClaim", "v1", f"{NAME}-models", storage),
    }
    if settings.router:
        found["router"] = _router(sizing, settings)
    if sizing.autoscaled:
        scaler = scaled_object(sizing, settings)
        # Without a namespace: a patch finds its object before the namespace is set.
        found["scaler"] = {**scaler, "metadata": {"name": NAME}}
    return found


def kustomization(sizing: Sizing, settings: Settings) -> dict[str, Any]:
    """The file over base and components that fills the numbers in."""
    digest = settings.image_tag.startswith("sha256:")
    image = {"name": BASE_IMAGE, "newName": settings.image_name}
    image["digest" if digest else "newTag"] = settings.image_tag
    found: dict[str, Any] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": settings.namespace,
        "resources": ["base"],
        "components": [f"components/{name}" for name in _components(sizing, settings)],
        "images": [image],
        "configMapGenerator": [
            {"name": f"{NAME}-config", "behavior": "replace", "files": ["config.yaml"]}
        ],
        "patches": [{"path": f"patches/{name}.yaml"} for name in _patches(sizing, settings)],
    }
    if not sizing.autoscaled:
        found["replicas"] = [{"name": NAME, "count": sizing.replicas_min}]
    return {key: value for key, value in found.items() if value}


def output(sizing: Sizing, settings: Settings) -> tuple[Output, list[str]]:
    """Files, and the commands that use them.

    Raises
    ------
    ConfigError
        Another name is asked for.
    """
    if settings.name != NAME:
        raise ConfigError(
            f"--name {settings.name}: the objects of --target kustomize are named {NAME}; "
            "use --namespace, or --target helm"
        )
    texts = {
        "kustomization.yaml": dump(kustomization(sizing, settings), settings.note),
        "config.yaml": dump(sizing.server_config(), settings.note),
    }
    for name, content in _patches(sizing, settings).items():
        texts[f"patches/{name}.yaml"] = dump(content, settings.note)
    copies = {"base": f"{KUSTOMIZE}/base"}
    for name in _components(sizing, settings):
        copies[f"components/{name}"] = f"{KUSTOMIZE}/components/{name}"
    return Output(texts=texts, copies=copies), [
        *settings.secret_commands,
        f"kubectl apply -k {settings.out}",
    ]
