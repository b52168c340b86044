# SPDX-License-Identifier: Apache-2.0
"""``longflow demo``: the command line of `demo.run`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sglang_longflow.demo.scenes import BUDGET_TOKENS, CHAIN_TOKENS, PROBLEMS, QUESTIONS, SEED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``longflow demo``."""
    add = parser.add_argument
    add(
        "--questions",
        action="store_true",
        help="eight questions to SmolLM2-135M instead of the reasoner's chains of 2,000 tokens",
    )
    add("--seed", type=int, default=SEED, help=f"of the reasoner's problems; default {SEED}")
    add(
        "--chain-tokens",
        type=int,
        default=CHAIN_TOKENS,
        help=f"about how long the reasoner's chains are; default {CHAIN_TOKENS}",
    )
    theirs = QUESTIONS
    add(
        "--budget",
        type=int,
        help=f"KV budget of a request; default {BUDGET_TOKENS} tokens, of --questions "
        f"{theirs.budget}",
    )
    add(
        "--requests",
        type=int,
        help=f"asked at once, up to 8; default {PROBLEMS}, of --questions {theirs.requests}",
    )
    add(
        "--max-new-tokens",
        type=int,
        help=f"per answer; default a little more than the longest chain has, of --questions "
        f"{theirs.max_new_tokens}",
    )
    add(
        "--pool",
        type=int,
        help=f"KV pool of the server; default what one chain needs with full KV, of --questions "
        f"{theirs.pool} tokens",
    )
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
