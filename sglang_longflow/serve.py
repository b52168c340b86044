"""``longflow serve``: settings from flags, YAML and defaults; checks; then SGLang's own server."""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import shlex
import socket
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sglang_longflow import __version__
from sglang_longflow.errors import ConfigError, LongFlowError, UnsupportedSetup
from sglang_longflow.server_options import (
    KV_OPTIONS,
    make_parser,
    nearest,
    server_options,
    yaml_arguments,
)
from sglang_longflow.supervise import Server, ServerEnded, forwarding

DEFAULT_PORT = 30000  # SGLang's
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
USAGE = """\
usage: longflow serve [MODEL] [--config FILE.yaml] [--kv-budget TOKENS] [any SGLang server argument]

Starts SGLang's server with a KV budget per request and watches it.

  MODEL          model folder or Hugging Face name; the same as --model-path
  --config FILE  YAML file, one server argument a line (`kv-budget: 2048`); flags on the command
                 line win over it
"""


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
    """

    arguments: list[str]
    values: dict[str, Any]
    notes: list[str] = field(default_factory=list)

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
            raise ConfigError(f"model_path={given.model_path!r}: the model is also given as {model!r}")
        values["model_path"] = model
    if settings.model.startswith("~"):  # in a YAML file no shell expands it
        values["model_path"] = str(Path(settings.model).expanduser())
    if "model_path" in values:
        settings.arguments.append(f"--model-path={settings.model}")
    return settings


def check_model(model: str) -> None:
    """Refuse a model that cannot exist, before anything slow is started."""
    if not model:
        raise ConfigError("model_path: not set; longflow serve MODEL, or model-path in the YAML file")
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


def judge(values: dict[str, Any]) -> dict[str, Any]:
    """What the plugin's own checks say about server arguments.

    Returns ``{"device": "cuda" or "cpu", "kv": settings or None, "conflicts": [...]}``.
    """
    import torch

    from sglang_longflow.config import config_from
    from sglang_longflow.support import flag_conflicts

    arguments = SimpleNamespace(**values)
    config = config_from(arguments)
    kv = None
    if config is not None:
        floor = config.kv_budget_min or config.policy().min_budget_tokens
        kv = {**config.as_dict(), "kv_budget_min": floor, "allows_full": config.allows_full}
    return {
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "kv": kv,
        "conflicts": flag_conflicts(arguments) if config else [],
    }


def _judge_aside(values: dict[str, Any]) -> dict[str, Any]:
    """`judge` in a process of its own: torch would stay in the supervisor's memory otherwise."""
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            return pool.submit(judge, values).result()
    except LongFlowError:
        raise
    except Exception as error:
        raise ConfigError(f"cannot check the settings: {error}; run longflow doctor") from error


def prepare(argv: list[str]) -> tuple[Settings, dict[str, Any]]:
    """Read, check and complete the settings; also returns what `judge` found.

    Raises
    ------
    LongFlowError
        One line that names the field, its value and the limit.
    """
    settings = read_settings(argv)
    check_model(settings.model)
    check_port(settings.host, settings.port)
    found = _judge_aside(settings.values)
    if found["conflicts"]:
        raise UnsupportedSetup(found["conflicts"][0])
    settings.default("host", "127.0.0.1", "--host=127.0.0.1")
    settings.default("enable_metrics", True, "--enable-metrics")
    if found["device"] == "cpu":
        settings.default("device", "cpu", "--device=cpu")
    settings.default("device", "cuda")
    if found["kv"] is None:
        settings.notes.append(
            "no kv-budget is set: the server runs stock SGLang. Add --kv-budget TOKENS, or 0 for "
            "full KV with budgets by request."
        )
    return settings, found


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
    rows.append(("command", f"python -m sglang.launch_server {shlex.join(settings.arguments)}"))
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


def run(argv: list[str]) -> int:
    """Run ``longflow serve``; returns the exit status, 0 after a drain on SIGTERM or Ctrl+C."""
    if {"-h", "--help"} & set(argv):
        flags = ", ".join("--" + name.replace("_", "-") for name in KV_OPTIONS)
        print(f"{USAGE}\nThe plugin's own flags: {flags}.\nEvery server argument, explained:")
        print("  python -m sglang.launch_server --help")
        return 0
    settings, found = prepare(argv)
    _print_banner(banner(settings, found["kv"]))
    server = Server(settings.arguments, settings.url, echo=getattr(sys.stderr, "buffer", None))
    with forwarding(server):
        try:
            seconds = server.wait_ready()
            print(f"ready in {seconds:.0f} s: {settings.url}", flush=True)
            return server.wait()
        except ServerEnded:
            if server.forwarded is None:
                raise
            return 128 + server.forwarded  # asked to end before it was ready
        finally:
            server.kill()
