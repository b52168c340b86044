# SPDX-License-Identifier: Apache-2.0
"""What ``longflow serve`` starts a server with: the command line, a YAML file, and defaults."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sglang_longflow.client.http import first_port
from sglang_longflow.errors import ConfigError, UnsupportedSetup
from sglang_longflow.planner.geometry import PlanError
from sglang_longflow.platform.cpu_dtype import fast_dtype, reason_for
from sglang_longflow.server.free_memory import free_memory
from sglang_longflow.server.options import make_parser, refuse_shortened, unknown_flag
from sglang_longflow.server.pool_cap import cap_pool
from sglang_longflow.server.preflight import (
    ModelLook,
    check_model,
    check_port,
    find_model,
    free_port,
    kv_facts,
)
from sglang_longflow.server.yaml_file import yaml_arguments
from sglang_longflow.settings import device, preflight
from sglang_longflow.settings.files import user_path
from sglang_longflow.settings.flags import budget_words
from sglang_longflow.settings.problem import Problem, refuse_first
from sglang_longflow.settings.release import refusal

DEFAULT_PORT = 30000  # SGLang's


@dataclass
class Settings:
    """What the server will be started with.

    Attributes
    ----------
    arguments : list of str
        For ``python -m sglang.launch_server``.
    values : dict
        The same by field of ServerArgs; only what was set, by the user or by a default of ours.
    notes : list of str
        What the operator should know.
    chosen : list of (str, str)
        Label and text of what was chosen for this machine, for people to read.
    """

    arguments: list[str]
    values: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    chosen: list[tuple[str, str]] = field(default_factory=list)

    def default(self, name: str, value: Any, *arguments: str) -> None:
        """Set what nobody has set."""
        if name not in self.values:
            self.values[name] = value
            self.arguments[:0] = arguments

    @property
    def model(self) -> str:
        return str(self.values.get("model_path", ""))

    @property
    def port(self) -> int:
        return int(self.values.get("port", DEFAULT_PORT))

    @property
    def host(self) -> str:
        return str(self.values.get("host", "127.0.0.1"))

    @property
    def environment(self) -> dict[str, str]:
        """Variables for the server, where the operator has not set them."""
        # Threads that spin while they wait slow each other down where cores are shared: three
        # times on a busy machine with two cores. A GPU server has no such threads in its way.
        if self.values.get("device") != "cpu":
            return {}
        # One core is left to the HTTP process, which tokenizes and streams beside the model.
        threads = max(1, len(os.sched_getaffinity(0)) - 1)
        return {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}

    @property
    def url(self) -> str:
        """Where this machine reaches the server, also if it listens on all interfaces."""
        local = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
        host = local.get(self.host, self.host)
        scheme = "https" if self.values.get("ssl_certfile") else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"


def read_settings(argv: list[str]) -> Settings:
    """Merge YAML and command line; the command line wins.

    What stands behind a literal ``--`` may be other plugins': of it, only what is ours or SGLang's
    is read.

    Raises
    ------
    ConfigError
        Naming the field, its value and what is expected.
    """
    if (word := budget_words(argv)) and (message := refusal(word)):
        raise UnsupportedSetup(message)
    at = argv.index("--") if "--" in argv else len(argv)
    argv, foreign = argv[:at], argv[at + 1 :]
    splitter = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    splitter.add_argument("--config", action="append", default=[])
    try:
        split, rest = splitter.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError(f"--config: {error.message}") from error
    if len(split.config) > 1:
        raise ConfigError(f"config={split.config!r}: only one file may be given")
    from_yaml = yaml_arguments(user_path(split.config[0])) if split.config else []
    model = rest.pop(0) if rest and not rest[0].startswith("-") else None
    parser = make_parser()
    values = vars(parser.parse_args(from_yaml))
    refuse_shortened(rest)
    given, unknown = parser.parse_known_args(rest)
    for word in unknown:
        if word.startswith("-"):
            raise unknown_flag(word)
        if model is not None:
            raise ConfigError(
                f"unexpected argument {word!r}; drop it, or quote the value before it"
            )
        model = word
        rest.remove(word)
    values.update(vars(given))
    # Other plugins may have added to the values that SGLang's own arguments take.
    values.update(vars(make_parser(judge_choices=False).parse_known_args(foreign)[0]))
    settings = Settings([*from_yaml, *rest, *foreign], values)
    if model is not None:
        if "model_path" in vars(given):
            raise ConfigError(
                f"model_path={given.model_path!r}: the model is also given as {model!r}; "
                f"drop one of them"
            )
        values["model_path"] = model
    if settings.model.startswith("~"):  # in a YAML file no shell expands it
        values["model_path"] = str(user_path(settings.model))
    if "model_path" in values:
        settings.arguments.append(f"--model-path={settings.model}")
    return settings


def _fit_to_cpu(settings: Settings, most_tokens: int | None) -> None:
    """Choose dtype and pool for this machine, where the operator has set neither.

    `most_tokens` is what all requests at once need, if that is known.
    """
    values, dtype = settings.values, settings.values.get("dtype", "auto")
    if dtype == "auto":
        values["dtype"] = dtype = fast_dtype()
        settings.arguments.append(f"--dtype={dtype}")  # behind an "auto" of the operator's
        settings.chosen.append(("dtype", f"{dtype}: {reason_for(dtype)}"))
    if {"max_total_tokens", "mem_fraction_static"} & values.keys():
        return
    bytes_of = {"half": "float16", "float": "float32"}.get(dtype, dtype)
    try:
        cap = cap_pool(values, bytes_of, free_memory(), most_tokens)
    except PlanError as error:
        settings.notes.append(
            f"the KV pool is not capped by free memory, as the model's shape is not known here: "
            f"{str(error)[:200]}. --max-total-tokens N caps it."
        )
        return
    settings.default("max_total_tokens", cap.tokens, f"--max-total-tokens={cap.tokens}")
    settings.chosen.append(("KV pool", f"{cap.tokens:,} tokens, {cap.reason}"))


def judged(settings: Settings) -> tuple[ModelLook, list[Problem]]:
    """What is wrong with what a server would be started with; and what was seen of its model.

    The hub is asked for the model's config if it is not on this machine.
    """
    if found := preflight.judge(settings.values):
        return ModelLook(), found  # needs no model, so no hub is asked
    look = find_model(settings.values, hub=not _from_another_hub())
    if look.problem:
        return look, [look.problem]
    if preflight.is_overridden(settings.values):
        look = look._replace(unjudged="json_model_override_args changes its config")
    return look, preflight.judge(settings.values, look.config)


def _accepted(settings: Settings) -> ModelLook:
    """What was seen of the model; UnsupportedSetup for the first mistake."""
    look, problems = judged(settings)
    refuse_first(problems)
    return look


def _from_another_hub() -> bool:
    """Whether SGLang fetches models from ModelScope."""
    return os.environ.get("SGLANG_USE_MODELSCOPE", "").lower() in ("1", "true", "yes", "y")


def refuse_mistakes(
    argv: list[str], budgets: Iterable[int] = (), request_tokens: int | None = None
) -> None:
    """Raise for what `prepare` would refuse of a command line, but for its port.

    For commands that do other work before they start a server.

    Parameters
    ----------
    argv : list of str
        The command line of ``longflow serve``.
    budgets : iterable of int
        Tokens that requests will ask for, judged as if each were ``--kv-budget``; 0 is full KV.
    request_tokens : int, optional
        Prompt and output of a request together, where all of them will be generated.

    Raises
    ------
    LongFlowError
        One line that names the field, its value and the limit.
    """
    settings = read_settings(argv)
    check_model(settings.model)
    model = _accepted(settings).config
    for budget in filter(None, budgets):
        for problem in preflight.judge({**settings.values, "kv_budget": budget}, model):
            what = problem.what.replace("kv_budget=", "budgets=", 1)
            raise UnsupportedSetup(f"{what}; give another one, or full for full KV")
    context = preflight.context_of(settings.values, model or {})
    if context is not None and (request_tokens or 0) > context:
        raise UnsupportedSetup(
            f"input_tokens + output_tokens={request_tokens}: over the model's context of {context} "
            f"tokens; lower --input-tokens or --output-tokens"
        )


def prepare(
    argv: list[str], most_tokens: int | None = None, *, key: str | None = None
) -> tuple[Settings, dict[str, Any]]:
    """Read, check and complete the settings; also returns what they come to.

    That is ``{"device": "cuda" or "cpu", "kv": facts of the budget or None}``.

    Parameters
    ----------
    argv : list of str
        The command line of ``longflow serve``.
    most_tokens : int, optional
        KV slots that all requests at once need at most, if the caller knows it.
    key : str, optional
        ``--api-key`` where neither a flag nor the file sets one; only of a server for others.

    Raises
    ------
    LongFlowError
        One line that names the field, its value and the limit.
    """
    settings = read_settings(argv)
    check_model(settings.model)
    check_port(settings.host, settings.port)
    look = _accepted(settings)
    if look.unjudged and settings.values.get("kv_budget") is not None:
        settings.notes.append(
            f"whether this model goes together with a KV budget is for the start to find out: "
            f"{look.unjudged}"
        )
    found = {
        "device": "cuda" if device.gpu_count() else "cpu",
        "kv": kv_facts(settings.values),
    }
    settings.default("host", "127.0.0.1", "--host=127.0.0.1")
    if not {"dist_init_addr", "nccl_port"} & settings.values.keys():
        # Where the ranks meet. SGLang takes a port that the system may give to anyone's outgoing
        # connection before the scheduler listens on it, and the start then ends.
        rendezvous = free_port("127.0.0.1", first_port() + 4)
        settings.default("nccl_port", rendezvous, f"--nccl-port={rendezvous}")
    settings.default("enable_metrics", True, "--enable-metrics")
    if key:
        settings.default("api_key", key, f"--api-key={key}")
    if found["device"] == "cpu":
        settings.default("device", "cpu", "--device=cpu")
    settings.default("device", "cuda")
    if settings.values["device"] == "cpu":
        _fit_to_cpu(settings, most_tokens)
    if found["kv"] is None:
        settings.notes.append(
            "no kv-budget is set: the server runs stock SGLang. Add --kv-budget TOKENS, or 0 for "
            "full KV with budgets by request."
        )
    return settings, found
