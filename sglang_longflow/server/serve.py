"""``longflow serve``: settings from flags, YAML and defaults; checks; then SGLang's own server."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_longflow import __version__
from sglang_longflow.client.http import first_port
from sglang_longflow.errors import ConfigError, LongFlowError, UnsupportedSetup
from sglang_longflow.planner.geometry import PlanError
from sglang_longflow.platform.cpu_dtype import fast_dtype, reason_for
from sglang_longflow.server.free_memory import free_memory
from sglang_longflow.server.json_log import JsonLines, logging_config, record
from sglang_longflow.server.options import (
    make_parser,
    nearest,
    server_options,
    yaml_arguments,
)
from sglang_longflow.server.pool_cap import cap_pool
from sglang_longflow.server.preflight import (
    check_model,
    check_port,
    check_settings_in_subprocess,
    free_port,
)
from sglang_longflow.server.process import Echo, Server, ServerEnded, forwarding
from sglang_longflow.server.progress import SIGN_OF_LIFE_S, every
from sglang_longflow.settings.flags import FLAGS, budget_words
from sglang_longflow.settings.release import refusal

DEFAULT_PORT = 30000  # SGLang's
SECRETS = ("--api-key", "--admin-api-key", "--ssl-keyfile-password")
USAGE = """\
usage: longflow serve [MODEL] [--config FILE.yaml] [--kv-budget TOKENS] [--log-format text|json]
                      [any SGLang server argument]

Starts SGLang's server with a KV budget per request and watches it.

  MODEL          model folder or Hugging Face name; the same as --model-path
  --config FILE  YAML file, one server argument a line (`kv-budget: 2048`); flags on the command
                 line win over it
  --log-format   text, or json: one JSON object for every line of the server's and of this command's
                 output (default: the variable LONGFLOW_LOG_FORMAT, else text)

The variable LONGFLOW_API_KEY is --api-key where neither a flag nor the file sets one.
"""
LOG_FORMATS = ("text", "json")
LOGGER = "longflow.serve"


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
        return self.values.get("model_path", "")

    @property
    def port(self) -> int:
        return self.values.get("port", DEFAULT_PORT)

    @property
    def host(self) -> str:
        return self.values.get("host", "127.0.0.1")

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

    Raises
    ------
    ConfigError
        Naming the field, its value and what is expected.
    """
    if (word := budget_words(argv)) and (message := refusal(word)):
        raise UnsupportedSetup(message)
    splitter = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    splitter.add_argument("--config", action="append", default=[])
    try:
        split, rest = splitter.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError(f"--config: {error.message}") from error
    if len(split.config) > 1:
        raise ConfigError(f"config={split.config!r}: only one file may be given")
    from_yaml = yaml_arguments(Path(split.config[0]).expanduser()) if split.config else []
    model = rest.pop(0) if rest and not rest[0].startswith("-") else None
    parser = make_parser()
    values = vars(parser.parse_args(from_yaml))
    given, unknown = parser.parse_known_args(rest)
    notes: list[str] = []
    for i, word in enumerate(unknown):
        if word.startswith("-"):
            known = [flag for option in server_options() for flag in (*option.flags, "--config")]
            notes.append(
                f"{word.split('=')[0]} is no argument of SGLang{nearest(word, known)} Passed on "
                f"for SGLang and its plugins to judge."
            )
        elif i and unknown[i - 1].startswith("-"):
            continue  # the value of an argument that only a plugin knows
        elif model is None:
            model = word
            rest.remove(word)
        else:
            raise ConfigError(f"unexpected argument {word!r}")
    values.update(vars(given))
    settings = Settings([*from_yaml, *rest], values, notes)
    if model is not None:
        if "model_path" in vars(given):
            raise ConfigError(
                f"model_path={given.model_path!r}: the model is also given as {model!r}"
            )
        values["model_path"] = model
    if settings.model.startswith("~"):  # in a YAML file no shell expands it
        values["model_path"] = str(Path(settings.model).expanduser())
    if "model_path" in values:
        settings.arguments.append(f"--model-path={settings.model}")
    return settings


def _fit_to_cpu(settings: Settings, most_tokens: int | None) -> None:
    """Choose dtype and pool for this machine, where the operator has set neither.

    `most_tokens` is what all requests at once need, where that is known.
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


def prepare(argv: list[str], most_tokens: int | None = None) -> tuple[Settings, dict[str, Any]]:
    """Read, check and complete the settings; also returns what `check_settings` found.

    Parameters
    ----------
    argv : list of str
        The command line of ``longflow serve``.
    most_tokens : int, optional
        KV slots that all requests at once need at most, where the caller knows them.

    Raises
    ------
    LongFlowError
        One line that names the field, its value and the limit.
    """
    settings = read_settings(argv)
    check_model(settings.model)
    check_port(settings.host, settings.port)
    found = check_settings_in_subprocess(settings.values)
    if found["conflicts"]:
        raise UnsupportedSetup(found["conflicts"][0])
    settings.default("host", "127.0.0.1", "--host=127.0.0.1")
    if not {"dist_init_addr", "nccl_port"} & settings.values.keys():
        # Where the ranks meet. SGLang takes a port that the system may give to anyone's outgoing
        # connection before the scheduler listens on it, and the start then ends.
        rendezvous = free_port("127.0.0.1", first_port() + 4)
        settings.default("nccl_port", rendezvous, f"--nccl-port={rendezvous}")
    settings.default("enable_metrics", True, "--enable-metrics")
    if key := os.environ.get("LONGFLOW_API_KEY", "").strip():
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


def without_secrets(arguments: list[str]) -> list[str]:
    """Server arguments for people to read: the values of `SECRETS` are starred out."""
    shown: list[str] = []
    for word in arguments:
        flag, is_joined, _ = word.partition("=")
        if shown and shown[-1] in SECRETS:
            shown.append("***")
        else:
            shown.append(f"{flag}=***" if is_joined and flag in SECRETS else word)
    return shown


def banner(settings: Settings, kv: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Label and text of every line of the start-up banner."""
    try:
        sglang = importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        sglang = "(not installed)"
    device = settings.values["device"]
    rows = [
        ("longflow", f"{__version__} on SGLang {sglang}"),
        ("model", settings.model),
        ("device", f"{device} (for trying out)" if device == "cpu" else device),
        *settings.chosen,
    ]
    if kv:
        budget = f"{kv['kv_budget']:,} tokens a request" if kv["kv_budget"] else "full by default"
        top = f"{kv['kv_budget_max']:,}" if kv["kv_budget_max"] else "what the pool holds"
        full = "allowed" if kv["allows_full"] else "refused"
        rows += [
            ("KV budget", f"{budget}, policy {kv['kv_policy']}"),
            ("by request", f"{kv['kv_budget_min']:,} to {top} tokens; full KV is {full}"),
            (
                "protected",
                f"first {kv['kv_protect_sink_tokens']}, last {kv['kv_protect_recent_tokens']} "
                f"tokens",
            ),
        ]
    else:
        rows.append(("KV budget", "none: stock SGLang"))
    metrics = f"{settings.url}/metrics" if settings.values.get("enable_metrics") else "off"
    rows += [("port", str(settings.port)), ("url", settings.url), ("metrics", metrics)]
    if kv:
        rows.append(("stats", f"{settings.url}/longflow/stats"))
        # A browser cannot send the key with a page's address.
        keyed = f"longflow console --url {settings.url}"
        page = f"{settings.url}/longflow"
        rows.append(("console", keyed if settings.values.get("api_key") else page))
    arguments = shlex.join(without_secrets(settings.arguments))
    rows.append(("command", f"python -m sglang.launch_server {arguments}"))
    return rows + [("note", note) for note in settings.notes]


def _print_banner(rows: list[tuple[str, str]]) -> None:
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for label, text in rows:
            table.add_row(f"[bold]{label}[/bold]", text.replace("[", r"\["))
        Console().print(table)
    else:
        print("\n".join(f"{label:<11} {text}" for label, text in rows), flush=True)


def take_log_format(argv: list[str]) -> tuple[str, list[str]]:
    """The format of the log, and `argv` without it.

    Raises
    ------
    ConfigError
        No such format.
    """
    splitter = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    splitter.add_argument("--log-format")
    try:
        given, rest = splitter.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError(f"--log-format: {error.message}") from error
    name, chosen = "log_format", given.log_format
    if chosen is None:
        name, chosen = "LONGFLOW_LOG_FORMAT", os.environ.get("LONGFLOW_LOG_FORMAT") or "text"
    if chosen not in LOG_FORMATS:
        raise ConfigError(f"{name}={chosen!r}: expected one of {', '.join(LOG_FORMATS)}")
    return chosen, rest


def run(argv: list[str]) -> int:
    """Run ``longflow serve``; returns the exit status, 0 after a drain on SIGTERM or Ctrl+C."""
    if {"-h", "--help"} & set(argv):
        flags = ", ".join(flag.option for flag in FLAGS)
        print(f"{USAGE}\nThe plugin's own flags: {flags}.\nEvery server argument, explained:")
        print("  python -m sglang.launch_server --help")
        return 0
    log_format, argv = take_log_format(argv)
    if log_format == "text":
        settings, found = prepare(argv)
        _print_banner(banner(settings, found["kv"]))

        def say_ready(seconds: float) -> None:
            print(f"ready in {seconds:.0f} s: {settings.url}", flush=True)

        def say_starting(seconds: float, stage: str) -> None:
            print(f"starting: {seconds:.0f} s, {stage}", flush=True)

        echo = getattr(sys.stderr, "buffer", None)
        return _watch(settings, echo, {}, say_starting, say_ready)
    try:
        return _run_with_json_log(argv)
    except LongFlowError as error:
        _say(" ".join(str(error).split()), level="ERROR")
        return getattr(error, "exit_status", 2)


def _say(message: str, **more: Any) -> None:
    print(record(message, logger=LOGGER, **more), file=sys.stderr, flush=True)


def _run_with_json_log(argv: list[str]) -> int:
    settings, found = prepare(argv)
    rows = [row for row in banner(settings, found["kv"]) if row[0] != "note"]
    _say("starting", settings=dict(rows), notes=settings.notes)

    def say_ready(seconds: float) -> None:
        _say("ready", seconds=round(seconds, 1), url=settings.url)

    def say_starting(seconds: float, stage: str) -> None:
        _say("still starting", seconds=round(seconds, 1), stage=stage)

    level = settings.values.get("log_level", "info")
    lines = JsonLines(sys.stderr.buffer)
    with tempfile.NamedTemporaryFile("w", prefix="longflow-log-", suffix=".json") as file:
        json.dump(logging_config(level), file)
        file.flush()
        try:
            variables = {"SGLANG_LOGGING_CONFIG_PATH": file.name}
            return _watch(settings, lines, variables, say_starting, say_ready)
        finally:
            lines.finish()


def _watch(
    settings: Settings,
    echo: Echo | None,
    environment: dict[str, str],
    say_starting: Callable[[float, str], None],
    say_ready: Callable[[float], None],
) -> int:
    """Start the server, and stay until it has ended."""
    server = Server(settings.arguments, settings.url, echo, {**settings.environment, **environment})
    with forwarding(server):
        try:
            with every(SIGN_OF_LIFE_S, lambda: say_starting(server.running_s, server.stage())):
                seconds = server.wait_ready()
            say_ready(seconds)
            return server.wait()
        except ServerEnded:
            if server.forwarded is None:
                raise
            return 128 + server.forwarded  # asked to end before it was ready
        finally:
            server.kill()
