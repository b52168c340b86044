# SPDX-License-Identifier: Apache-2.0
"""Checks before a server is started: seconds instead of a failed start-up."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from sglang_longflow.errors import ConfigError
from sglang_longflow.settings.builtin_models import builtin_names, near_names
from sglang_longflow.settings.config import config_from
from sglang_longflow.settings.model_source import Missing, Why, look_up
from sglang_longflow.settings.problem import Problem
from sglang_longflow.settings.refused_models import model_conflict

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
#: Why a config was not found where SGLang may still find the model, or says itself what is wrong.
_LEFT_TO_SGLANG = (
    *(Why.PATH, Why.ERROR, Why.NO_CONFIG, Why.UNUSABLE, Why.NOT_ASKED),
    Why.TIMED_OUT,  # SGLang waits longer
)
#: Files that SGLang loads weights from, and the load formats under which it looks for them.
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
_FROM_FILES = (None, "auto", "safetensors", "pt")


def check_model(model: str) -> None:
    """Refuse a model that cannot exist, before anything slow is started."""
    if not model:
        raise ConfigError(
            "model_path: not set; longflow serve MODEL, or model-path in the YAML file"
        )
    path = Path(model)
    if "://" in model or model.lower() in ("none", "dummy") or os.path.isfile(model):
        return
    if os.path.isdir(model):  # unlike pathlib, it takes a name of any length
        if not any((path / name).is_file() for name in ("config.json", "params.json")):
            raise ConfigError(
                f"model_path={model!r}: the folder has no config.json; give the folder that has it"
            )
    elif model.startswith(("/", ".")) or not _HUB_NAME.fullmatch(model):
        near = near_names(model, builtin_names())
        fix = f"did you mean {' or '.join(near)}?" if near else "give a folder, or org/name"
        raise ConfigError(
            f"model_path={model!r}: no such folder, and not a Hugging Face name (org/name); {fix}"
        )


class ModelLook(NamedTuple):
    """What is known of a server's model before the start.

    Attributes
    ----------
    config : dict or None
        Its ``config.json``.
    problem : Problem or None
        Why no server can start with it.
    unjudged : str
        Why only SGLang can tell; empty with a config or a problem.
    """

    config: dict[str, Any] | None = None
    problem: Problem | None = None
    unjudged: str = ""


def find_model(values: Mapping[str, Any], hub: bool = True) -> ModelLook:
    """Look for the ``config.json`` of a server's model.

    The hub is asked for seconds at most, and only if `hub`.
    """
    model = str(values.get("model_path") or "")
    if not model:
        return ModelLook(unjudged="no model is given")
    if "://" in model or model.lower() in ("none", "dummy") or os.path.isfile(model):
        return ModelLook(unjudged=f"only SGLang can read {model}")
    found = look_up(model, values.get("revision"), hub=hub)
    missing = found if isinstance(found, Missing) else found.passed_over
    if missing is not None:
        if not isinstance(found, Missing) and values.get("kv_budget") is not None:
            if model_conflict(found.config):  # nobody should fetch it to be refused then
                return ModelLook(found.config)
        if missing.why is Why.PATH and (Path(model) / "config.json").is_file():
            what = f"model_path={model!r}: {missing.detail}"
            return ModelLook(problem=Problem(what, "mend that file"))
        if missing.why in _LEFT_TO_SGLANG:
            return ModelLook(unjudged=missing.briefly)
        text = str(missing).removeprefix(f"{missing.name[:200]}: ")
        # A server needs the weights too.
        text = text.replace(f"{missing.name} config.json", missing.name)
        what, _, fix = text.partition("; ")
        what = f"model_path={model!r}: {what}"
        return ModelLook(problem=Problem(what, fix or "check --model-path"))
    assert not isinstance(found, Missing)
    is_offline = found.source == "cache" and offline()
    if values.get("load_format") in _FROM_FILES and (found.source == "folder" or is_offline):
        folder = Path(str(found.folder))
        if not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
            fix = "give the folder that has them, or --load-format dummy for random ones"
            if is_offline:
                fix = f"hf download {model} where there is a network, or give a folder"
            what = f"model_path={model!r}: {folder} has no weights ({', '.join(_WEIGHTS[:2])})"
            return ModelLook(problem=Problem(what, fix))
    return ModelLook(found.config)


def offline() -> bool:
    """Whether Hugging Face's library was told not to ask its hub (``HF_HUB_OFFLINE``)."""
    from huggingface_hub import is_offline_mode

    return bool(is_offline_mode())


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
        raise ConfigError(f"port={port}: expected 1 to 65535; set --port 30000")
    try:
        _can_bind(host, port)
    except (socket.gaierror, ValueError) as error:  # ValueError: no name that could be looked up
        reason = getattr(error, "strerror", None) or "not an address"
        raise ConfigError(
            f"host={host!r:.200}: {reason}; set --host to an address of this machine"
        ) from error
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


def kv_facts(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The budget's settings, with what the policy makes of those left open; None without a budget.

    Raises
    ------
    ConfigError
        A value is wrong; `settings.preflight.judge` says so too.
    """
    config = config_from(SimpleNamespace(**values))
    if config is None:
        return None
    policy = config.policy()
    return {
        **config.as_dict(),
        "kv_budget_min": config.kv_budget_min or policy.min_budget_tokens,
        "kv_protect_sink_tokens": policy.first_tokens_kept,
        "kv_protect_recent_tokens": policy.recent_tokens_kept,
        "allows_full": config.allows_full,
    }
