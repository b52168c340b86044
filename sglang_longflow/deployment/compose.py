# SPDX-License-Identifier: Apache-2.0
"""`longflow render --target compose`: the compose files, .env and the server's YAML file."""

from __future__ import annotations

from typing import Any

from sglang_longflow.deployment.files import Output, dump, load
from sglang_longflow.deployment.settings import Settings
from sglang_longflow.deployment.sizing import GRACE_MARGIN_S, Sizing
from sglang_longflow.errors import ConfigError

COMPOSE = "compose"


def compose_file(sizing: Sizing, settings: Settings) -> dict[str, Any]:
    """The shipped compose.yaml for an image that exists, on `gpus` GPUs."""
    content: dict[str, Any] = load(f"{COMPOSE}/compose.yaml")
    endpoint = content["services"]["endpoint"]
    endpoint.pop("build", None)  # there is no source beside it
    endpoint["image"] = settings.image
    (device,) = endpoint["deploy"]["resources"]["reservations"]["devices"]
    device["count"] = sizing.gpus
    endpoint["stop_grace_period"] = f"{sizing.longest_generation_s + GRACE_MARGIN_S}s"
    return content


def environment(sizing: Sizing, settings: Settings) -> str:
    """The .env file, which compose reads."""
    note = "".join(f"# {line}\n" for line in settings.note.splitlines())
    return (
        f"{note}MODEL={sizing.model_path}\n"
        "CONFIG=../config.yaml\n"
        f"SHM_SIZE={sizing.shared_memory_gib}gb\n"
        "\n# For models that need a login.\n#HF_TOKEN=\n"
        "# Clients must send it as a bearer token; /health and /metrics are open.\n#API_KEY=\n"
        "# 0.0.0.0 publishes the ports on every interface: set API_KEY first.\n#BIND=127.0.0.1\n"
    )


def output(sizing: Sizing, settings: Settings) -> tuple[Output, list[str]]:
    """Files, and the commands that use them.

    Raises
    ------
    ConfigError
        More than one server or a router is asked for.
    """
    if sizing.replicas_max > 1:
        raise ConfigError(
            f"--replicas-max {sizing.replicas_max}: --target compose runs 1 server; "
            "use kustomize or helm for more"
        )
    if settings.router:
        raise ConfigError("--router: --target compose has none; use kustomize or helm")
    config = sizing.server_config()
    if sizing.gpus > 1:
        config["tp-size"] = sizing.gpus
    texts = {
        "compose/compose.yaml": dump(compose_file(sizing, settings), settings.note),
        "compose/.env": environment(sizing, settings),
        "config.yaml": dump(config, settings.note),
    }
    copies = {"compose/services.yaml": f"{COMPOSE}/services.yaml", "monitoring": "monitoring"}
    return Output(texts=texts, copies=copies, without=("rules_test.yaml",)), [
        f"cd {settings.out}/compose && docker compose up"
    ]
