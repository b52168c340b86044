# SPDX-License-Identifier: Apache-2.0
"""``longflow serve``: prints what it chose, starts SGLang's own server, and stays until it ends."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from sglang_longflow import __version__
from sglang_longflow.errors import ConfigError, LongFlowError
from sglang_longflow.planner.quality import known_quality, server_variant
from sglang_longflow.server.api_key import key_of_environment
from sglang_longflow.server.json_log import JsonLines, logging_config, record
from sglang_longflow.server.process import Echo, Server, ServerEnded, forwarding
from sglang_longflow.server.progress import SIGN_OF_LIFE_S, every
from sglang_longflow.server.settings import Settings, prepare
from sglang_longflow.settings.nearest import nearest
from sglang_longflow.settings.parsers import reasoning_parser

SECRETS = ("--api-key", "--admin-api-key", "--ssl-keyfile-password")
LOG_FORMATS = ("text", "json")
LOGGER = "longflow.serve"


def without_secrets(arguments: list[str]) -> list[str]:
    """Server arguments for people to read: the values of `SECRETS` are masked."""
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
        *thinking_row(settings),
        *settings.chosen,
    ]
    if kv:
        budget = f"{kv['kv_budget']:,} tokens per request" if kv["kv_budget"] else "full by default"
        top = f"to {kv['kv_budget_max']:,}" if kv["kv_budget_max"] else "or more"
        full = "allowed" if kv["allows_full"] else "refused"
        rows += [
            ("KV budget", f"{budget}, policy {kv['kv_policy']}"),
            ("by request", f"{kv['kv_budget_min']:,} {top} tokens; full KV is {full}"),
            *quality_row(settings, kv),
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


def thinking_row(settings: Settings) -> list[tuple[str, str]]:
    """Where the model's thinking goes, if its name says that it thinks or a parser is set."""
    given, known = settings.values.get("reasoning_parser"), reasoning_parser(settings.model)
    if given:
        return [("thinking", f"into reasoning_content (parser {given})")]
    if not known:
        return []
    return [("thinking", f"stays in content; --reasoning-parser {known} takes it out")]


def quality_row(settings: Settings, kv: dict[str, Any]) -> list[tuple[str, str]]:
    """What is known of the model's answers at the server's budget."""
    if not kv["kv_budget"]:
        return []
    model = str(settings.values.get("model_path") or settings.model)
    variant = server_variant({**settings.values, "kv_policy": kv["kv_policy"]})
    return [("quality", known_quality(model, variant, kv["kv_budget"]))]


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
        meant = nearest(chosen, LOG_FORMATS) or "; set --log-format text"
        raise ConfigError(f"{name}={chosen!r}: expected one of {', '.join(LOG_FORMATS)}{meant}")
    return chosen, rest


def run(argv: list[str]) -> int:
    """Run ``longflow serve``; returns the exit status, 0 after a drain on SIGTERM or Ctrl+C."""
    if {"-h", "--help"} & set(argv):
        from sglang_longflow.server.usage import help_text

        print(help_text())
        return 0
    log_format, argv = take_log_format(argv)
    if log_format == "text":
        settings, found = prepare(argv, key=key_of_environment())
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
    settings, found = prepare(argv, key=key_of_environment())
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
