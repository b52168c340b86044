# SPDX-License-Identifier: Apache-2.0
"""``longflow demo``: the command line of `demo.run`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sglang_longflow.demo.scenes import QUESTIONS, REASONER


def _defaults(name: str) -> str:
    """For a help text."""
    return f"default {getattr(QUESTIONS, name):,}, of the reasoner {getattr(REASONER, name):,}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``longflow demo``."""
    add = parser.add_argument
    add(
        "--reasoner",
        action="store_true",
        help="chains of some 2,000 tokens by the reasoner that comes with this package, and "
        "whether their answers are right",
    )
    add("--budget", type=int, help=f"KV budget of a request; {_defaults('budget')} tokens")
    add("--max-new-tokens", type=int, help=f"per answer; {_defaults('max_new_tokens')}")
    add("--requests", type=int, help=f"questions asked at once, up to 8; {_defaults('requests')}")
    add("--pool", type=int, help=f"KV pool of the server; {_defaults('pool')} tokens")
    add("--port", default="auto", help="default: the first free one")
    add("--model", type=Path, help="model folder; default: SmolLM2-135M, fetched once (93 MB)")
    add("--verbose", action="store_true", help="show the server's output")


def run(args: argparse.Namespace) -> int:
    """Run the demo and print its tables."""
    from sglang_longflow.demo import run as demo

    return demo.run(args)
