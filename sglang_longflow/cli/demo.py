# SPDX-License-Identifier: Apache-2.0
"""``longflow demo``: the command line of `demo.run`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sglang_longflow.demo.scenes import QUESTIONS, REASONER, SEED


def _defaults(name: str) -> str:
    """For a help text."""
    return f"default {getattr(REASONER, name):,}, of --questions {getattr(QUESTIONS, name):,}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``longflow demo``."""
    add = parser.add_argument
    add(
        "--questions",
        action="store_true",
        help="eight questions to SmolLM2-135M instead of the reasoner's chains of 2,000 tokens",
    )
    add("--seed", type=int, default=SEED, help=f"of the reasoner's problems; default {SEED}")
    add("--budget", type=int, help=f"KV budget of a request; {_defaults('budget')} tokens")
    add("--max-new-tokens", type=int, help=f"per answer; {_defaults('max_new_tokens')}")
    add("--requests", type=int, help=f"asked at once, up to 8; {_defaults('requests')}")
    add("--pool", type=int, help=f"KV pool of the server; {_defaults('pool')} tokens")
    add("--port", default="auto", help="default: the first free one")
    add(
        "--model",
        type=Path,
        help="model folder, with --questions; default: SmolLM2-135M, fetched once (93 MB)",
    )
    add("--stay", action="store_true", help="leave the server running at the end, until Ctrl+C")
    add("--verbose", action="store_true", help="show the server's output")


def run(args: argparse.Namespace) -> int:
    """Run the demo and print its tables."""
    from sglang_longflow.demo import run as demo

    return demo.run(args)
