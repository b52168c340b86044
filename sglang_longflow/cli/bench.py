# SPDX-License-Identifier: Apache-2.0
"""``longflow bench``: the command line of `measure.throughput`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sglang_longflow.measure.throughput import BASELINES, NONE, STOCK, STOCK_SAME
from sglang_longflow.settings.flags import DEFAULT_POLICY


def words(text: str) -> list[str]:
    """Names between commas."""
    return [word for word in text.split(",") if word]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``longflow bench``; `measure.throughput.command` checks the numbers."""
    add = parser.add_argument
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--url",
        help="a running server, e.g. http://127.0.0.1:30000; its radix cache is emptied before "
        "each point, so nobody else should use it",
    )
    where.add_argument("--model", help="folder or Hugging Face name: servers are started for it")
    add(
        "--budgets",
        type=words,
        default=["10%", "25%", "50%", "full"],
        help="tokens, shares of input + output, or full; default 10%%,25%%,50%%,full",
    )
    add("--policy", default=DEFAULT_POLICY, help="e.g. streaming:sinks=4; default %(default)s")
    add(
        "--baselines",
        type=words,
        default=list(BASELINES),
        help=f"with --model: {STOCK} (SGLang's own defaults), {STOCK_SAME} (with the pool, page "
        f"size, attention backend and CUDA graphs of the budget server), or {NONE}; default both",
    )
    add("--requests", type=int, default=128, help="default %(default)s")
    add("--concurrency", type=int, default=0, help="requests at once; default: all of them")
    add("--input-tokens", type=int, default=512, help="of each request, default %(default)s")
    add("--output-tokens", type=int, default=4096, help="of each request, default %(default)s")
    add("--seed", type=int, default=1, help="of the prompts, random token ids")
    add("--vocab-size", type=int, help="token ids are below it; default: the model's")
    add("--stream-interval", type=int, default=8, help="with --model: tokens per message")
    add("--api-key", help="of a running server; default: $LONGFLOW_API_KEY")
    add("--out", type=Path, required=True, help="folder for bench.csv, bench.json and bench.png")
    add("--no-plot", dest="plot", action="store_false", help="no picture")
    add("--verbose", action="store_true", help="show the servers' output")
    add("server", nargs="*", help="more server arguments for every server, after --")


def run(args: argparse.Namespace) -> int:
    """Measure every point, then write and print the tables."""
    from sglang_longflow.measure.throughput import command

    return command.run(args)
