# SPDX-License-Identifier: Apache-2.0
"""Checks before a server is started: seconds instead of a failed start-up."""

from __future__ import annotations

import re
import socket
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sglang_longflow.errors import ConfigError, LongFlowError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_model(model: str) -> None:
    """Refuse a model that cannot exist, before anything slow is started."""
    if not model:
        raise ConfigError(
            "model_path: not set; longflow serve MODEL, or model-path in the YAML file"
        )
    path = Path(model)
    if "://" in model or model.lower() in ("none", "dummy") or path.is_file():
        return
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "params.json")):
            raise ConfigError(f"model_path={model!r}: the folder has no config.json")
    elif model.startswith(("/", ".")) or not _HUB_NAME.fullmatch(model):
        raise ConfigError(
            f"model_path={model!r}: no such folder, and not a Hugging Face name (org/name)"
        )


def _can_bind(host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn does
        probe.bind(address)


def check_port(host: str, port: int) -> None:
    """Refuse a port that cannot be listened on."""
    if not 0 < port < 65536:
        raise ConfigError(f"port={port}: expected 1 to 65535")
    try:
        _can_bind(host, port)
    except socket.gaierror as error:
        raise ConfigError(f"host={host!r}: {error.strerror}") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        free = free_port(host, port + 1)
        raise ConfigError(f"port={port}: {reason} on {host}; try --port {free}") from error


def free_port(host: str, start: int) -> int:
    """The first port from `start` on that can be listened on now."""
    for port in range(start, 65536):
        try:
            _can_bind(host, port)
        except OSError:
            continue
        return port
    raise ConfigError(f"no free port from {start} on")


def check_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Check server arguments as the plugin will.

    Returns ``{"device": "cuda" or "cpu", "kv": settings or None, "conflicts": [...]}``.
    """
    import torch

    from sglang_longflow.settings.compatibility import flag_conflicts
    from sglang_longflow.settings.config import config_from
    from sglang_longflow.settings.refused_models import server_model_conflict

    arguments = SimpleNamespace(**values)
    config = config_from(arguments)
    kv, conflicts = None, []
    if config is not None:
        conflicts = flag_conflicts(arguments)
        if conflict := server_model_conflict(values):
            conflicts.append(conflict)
        policy = config.policy()
        kv = {
            **config.as_dict(),
            "kv_budget_min": config.kv_budget_min or policy.min_budget_tokens,
            "kv_protect_sink_tokens": policy.first_tokens_kept,
            "kv_protect_recent_tokens": policy.recent_tokens_kept,
            "allows_full": config.allows_full,
        }
    return {
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "kv": kv,
        "conflicts": conflicts,
    }


def check_settings_in_subprocess(values: dict[str, Any]) -> dict[str, Any]:
    """`check_settings` in a child process: else torch would stay in the supervisor's memory."""
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            return pool.submit(check_settings, values).result()
    except LongFlowError:
        raise
    except Exception as error:
        raise ConfigError(f"cannot check the settings: {error}; run longflow doctor") from error
