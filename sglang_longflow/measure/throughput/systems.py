# SPDX-License-Identifier: Apache-2.0
"""The servers that are compared: with budgets, and stock SGLang in two ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sglang_longflow.client.http import NoResponse, ask
from sglang_longflow.errors import BenchError, ConfigError
from sglang_longflow.measure.throughput import STOCK_SAME
from sglang_longflow.measure.variants import Variant
from sglang_longflow.server.options import server_options
from sglang_longflow.settings.flags import FLAGS
from sglang_longflow.settings.model_source import find_config
from sglang_longflow.settings.refused_models import language_model

LONGFLOW = "longflow"
#: What a budget server sets or needs (`compatibility.defaults`), and the pool it got.
CONSTRAINTS = {
    "max_total_num_tokens": "max_total_tokens",
    "page_size": "page_size",
    "attention_backend": "attention_backend",
    "chunked_prefill_size": "chunked_prefill_size",
    "cuda_graph_max_bs_decode": "cuda_graph_max_bs_decode",
    "disable_prefill_cuda_graph": "disable_prefill_cuda_graph",
    "disable_decode_cuda_graph": "disable_decode_cuda_graph",
    "sleep_on_idle": "sleep_on_idle",
}
#: Set by the bench itself.
_OURS = ("kv_budget", "kv_policy", "kv_protect_sink_tokens", "kv_protect_recent_tokens")


@dataclass(frozen=True)
class System:
    """A server to start.

    Attributes
    ----------
    budgets : list of int
        To measure on it; 0 is full KV.
    arguments : list of str
        For `server.settings.prepare`.
    environment : dict
        Variables of its process.
    """

    name: str
    budgets: list[int]
    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def without_kv(arguments: Sequence[str]) -> list[str]:
    """Server arguments less the plugin's own flags and their values."""
    kinds = {flag.option: flag.kind for flag in FLAGS}
    kept: list[str] = []
    skip = False
    for word in arguments:
        name, assigned, _ = word.partition("=")
        kind = kinds.get(name.replace("_", "-"))
        if skip and not word.startswith("--"):
            skip = False
            continue
        skip = False
        if kind is None:
            kept.append(word)
        else:
            skip = kind != "flag" and not assigned
    return kept


def refuse_own_flags(arguments: Sequence[str]) -> None:
    """Raise ConfigError for a server argument that the bench sets."""
    for word in arguments:
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if word.startswith("--") and name in _OURS:
            raise ConfigError(
                f"server argument {word!r}: the bench sets it; use --budgets and "
                f"--policy NAME:sinks=N,recent=N"
            )


def constraints(info: dict[str, Any]) -> list[str]:
    """Arguments that give stock SGLang what a budget server ended with.

    `info` is that server's ``GET /server_info``.
    """
    flags = {option.name: option.flags[0] for option in server_options()}
    found = []
    for key, name in CONSTRAINTS.items():
        value = info.get(key)
        if value is True:
            found.append(flags[name])
        elif value is not None and value is not False:
            found.append(f"{flags[name]}={value}")
    return found


def _common(model: str, port: int, stream_interval: int) -> list[str]:
    return [
        model,
        f"--port={port}",
        "--skip-tokenizer-init",
        "--incremental-streaming-output",
        f"--stream-interval={stream_interval}",
        "--random-seed=1",
        "--log-level=warning",
    ]


def budget_system(
    model: str,
    port: int,
    variant: Variant,
    budgets: list[int],
    stream_interval: int,
    more: Sequence[str],
) -> System:
    """The server with budgets. Its default is the smallest, so that its decode CUDA graphs cover as
    many rows as that one lets run."""
    policy, sinks, recent = variant.policy, variant.sinks, variant.recent
    default = min((budget for budget in budgets if budget), default=0)
    return System(
        LONGFLOW,
        budgets,
        [
            *_common(model, port, stream_interval),
            *more,
            f"--kv-budget={default}",
            "--kv-budget-allow-full",
            f"--kv-policy={policy}",
            f"--kv-protect-sink-tokens={sinks}",
            f"--kv-protect-recent-tokens={recent}",
        ],
    )


def stock_system(
    name: str,
    model: str,
    port: int,
    stream_interval: int,
    more: Sequence[str],
    budget_server: dict[str, Any],
) -> System:
    """Stock SGLang without the plugin; `budget_server` is ``GET /server_info`` of the other one."""
    arguments = [*_common(model, port, stream_interval), *without_kv(more)]
    if name == STOCK_SAME:
        arguments += constraints(budget_server)
    # Only plugins that are named load. On a CPU the platform is one of them.
    on_cpu = budget_server.get("device") == "cpu"
    return System(name, [0], arguments, {"SGLANG_PLUGINS": "longflow_cpu" if on_cpu else "none"})


def get_json(url: str, api_key: str | None = None) -> Any:
    """What a server answers to a GET.

    Raises
    ------
    BenchError
        It does not answer, or not with JSON.
    """
    try:
        response = ask(url, api_key=api_key)
        if not response.is_success:
            raise BenchError(f"{url}: HTTP {response.status_code}: {response.text[:200]}")
        return response.json()
    except NoResponse as error:
        raise BenchError(f"{url}: the server does not answer: {error}; check --url") from None
    except ValueError as error:
        raise BenchError(f"{url}: {error}") from None


def vocabulary_of(model: str) -> int:
    """Size of a model's vocabulary, from its configuration; a folder, or a name on the hub.

    Raises
    ------
    ConfigError
        There is none; the message names the option that gives it instead.
    """
    found = find_config(model)
    size = None if found is None else language_model(found.config).get("vocab_size")
    if isinstance(size, int):
        return size
    from transformers import AutoConfig  # knows what a config leaves out; seconds to import

    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(
            f"model={model!r}: no configuration ({reason}); give --vocab-size"
        ) from None
    return int(config.get_text_config().vocab_size)
