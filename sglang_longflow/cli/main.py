# SPDX-License-Identifier: Apache-2.0
"""The console script ``longflow``. Each subcommand imports what it needs only when it runs."""

from __future__ import annotations

import argparse
import io
import sys

from sglang_longflow import __version__
from sglang_longflow.cli.examples import epilog
from sglang_longflow.cli.parser import Parser
from sglang_longflow.errors import LongFlowError

COMMANDS = {
    "serve": "start an SGLang server with a KV budget per request",
    "demo": "show budgets at work: one real server, a small model, with and without a budget",
    "doctor": "check this installation, and server arguments given after --",
    "eval": "measure right answers, or KL divergence on texts, by policy and budget",
    "bench": "measure throughput and latency against the budget, the same work on each server",
    "plan": "work out what a budget buys on a given GPU, without one",
    "top": "watch a running server: pool, requests, rates, queue",
    "console": "open a running server's console page from here, also with an API key",
    "render": "write deployment files for compose, kustomize, Helm or KEDA, with a plan's numbers",
}


def _serve(argv: list[str]) -> int:
    from sglang_longflow.cli import serve

    return serve.run(argv)


#: These start servers and take minutes.
SLOW_COMMANDS = ("demo", "eval", "bench")


def _module_command(name: str, argv: list[str]) -> int:
    from sglang_longflow.server.progress import shared

    if name in SLOW_COMMANDS and not {"-h", "--help"} & set(argv):
        with shared().sign_of_life():
            return _run_module(name, argv)
    return _run_module(name, argv)


def _run_module(name: str, argv: list[str]) -> int:
    import importlib

    module = importlib.import_module(f"sglang_longflow.cli.{name}")
    parser = Parser(
        prog=f"longflow {name}",
        description=COMMANDS[name],
        epilog=epilog(name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    if name == "doctor":  # the rest is server arguments to judge
        at = argv.index("--") if "--" in argv else len(argv)
        arguments, rest = parser.parse_known_args(argv[:at])
        arguments.server_arguments = [*rest, *argv[at + 1 :]]
    else:
        arguments = parser.parse(argv)
    status: int = module.run(arguments)
    return status


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; 2 after an error of the command line or the settings."""
    argv = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name of bytes that are no text is printed too
        sys.stdout.reconfigure(errors="backslashreplace")
    if argv[:1] == ["help"]:  # what many type first
        argv = [*argv[1:2], "--help"]
    elif argv == ["version"]:
        argv = ["--version"]
    parser = Parser(
        prog="longflow",
        description="A fixed KV-cache budget per request for SGLang.",
        epilog="longflow COMMAND --help explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"longflow {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    if not argv:  # what there is, and status 2 as for any incomplete command line
        parser.print_help(sys.stderr)
        return 2
    command = ""
    try:
        # Only the first word is judged here: the rest belongs to the subcommand.
        command = parser.parse(argv[:1]).command
        if command == "serve":
            return _serve(argv[1:])
        return _module_command(command, argv[1:])
    except LongFlowError as error:
        name = f"longflow {command}".strip()
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return getattr(error, "exit_status", 2)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `longflow plan | head`
        sys.stderr.close()
        return 141
