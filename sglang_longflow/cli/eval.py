# SPDX-License-Identifier: Apache-2.0
"""``longflow eval``: the command line of `measure.accuracy` and `measure.divergence`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sglang_longflow.errors import ConfigError
from sglang_longflow.measure.accuracy.hub import DATA_SETS
from sglang_longflow.reasoner import MODEL_DIR
from sglang_longflow.settings.flags import DEFAULT_POLICY

#: What the default policy is compared with on the reasoner's problems.
COMPARED = (DEFAULT_POLICY, "longflow", "streaming:sinks=4", "random")


def shipped_or(text: str) -> Path:
    """The model that comes with the package for "reasoner", where no folder of that name is."""
    return MODEL_DIR if text == "reasoner" and not Path(text).exists() else Path(text)


def names(text: str) -> list[str]:
    """Names between semicolons."""
    return [name for name in text.split(";") if name]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``longflow eval``; `measure.accuracy.command` checks the numbers."""
    add, shown = parser.add_argument, "; default %(default)s"
    add(
        "--model",
        type=shipped_or,
        required=True,
        help="model folder, its name on the Hugging Face hub, or reasoner: the small one that "
        "comes with this package",
    )
    add(
        "--out",
        type=Path,
        required=True,
        help="folder for answers and tables; goes on where it was",
    )
    add(
        "--policies",
        type=names,
        help="with semicolons, e.g. 'longflow;streaming:sinks=4;h2o'; default "
        f"{DEFAULT_POLICY}, for the reasoner's task {';'.join(COMPARED)}",
    )
    add(
        "--budgets",
        type=lambda text: text.split(","),
        default=["5%", "10%", "20%", "40%", "full"],
        help="tokens, shares of the mean reference chain or of a text, or full; "
        "default 5%%,10%%,20%%,40%%,full",
    )
    add(
        "--task",
        help=f"reasoner (default for --model reasoner), {', '.join(DATA_SETS)} (from the Hugging "
        "Face hub), a file of JSON lines (question, answer), or text:FILE to force such a file's "
        "texts and compare distributions (question, solution)",
    )
    add("--count", type=int, default=500, help="questions or texts, at most; default %(default)s")
    add(
        "--max-new-tokens",
        type=int,
        default=16_384,
        help="of an answer, for questions of a data set or a file; default %(default)s",
    )
    add("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    add("--top-p", type=float, default=1.0, help="with a temperature" + shown)
    add(
        "--samples",
        type=int,
        default=1,
        help="answers per question, with a temperature; default %(default)s",
    )
    add(
        "--seed",
        type=int,
        default=2_000_001,
        help="of the reasoner's problems, of texts; default %(default)s",
    )
    add(
        "--longest",
        type=int,
        default=4600,
        help="tokens of its longest reference chains; default %(default)s",
    )
    add(
        "--text-tokens",
        type=int,
        default=4096,
        help="of each text, its prompt included; default %(default)s",
    )
    add(
        "--prompt-tokens",
        type=int,
        default=512,
        help="of each text, prefilled at once; default %(default)s",
    )
    add(
        "--concurrency",
        type=int,
        default=256,
        help="requests at once, default %(default)s; texts at once, each under all policies and "
        "budgets of a server",
    )
    add("--no-plot", dest="plot", action="store_false", help="no picture")
    add("--verbose", action="store_true", help="show the servers' output")
    add("server", nargs="*", help="more server arguments, after --")


def run(args: argparse.Namespace) -> int:
    """Ask what is missing, then write and print the tables."""
    from sglang_longflow.measure.servers import refuse_servers
    from sglang_longflow.measure.variants import parse_budget

    if args.task is None:
        if args.model != MODEL_DIR:  # no other model knows the reasoner's words
            raise ConfigError(
                f"task: not set; give --task {', '.join(DATA_SETS)}, or a file of JSON lines"
            )
        args.task = "reasoner"
    if args.policies is None:
        args.policies = list(COMPARED) if args.task == "reasoner" else [DEFAULT_POLICY]
    whole = args.text_tokens if args.task.startswith("text:") else None
    # Of a misspelt task, or of the reasoner's chains, nobody knows yet what a share comes to.
    shares = whole is not None or args.task in DATA_SETS or Path(args.task).is_file()
    texts = [text for text in args.budgets if shares or not text.endswith("%")]
    budgets = [parse_budget(text, whole) for text in texts]
    refuse_servers(args.model, args.policies, args.server, "policies", budgets)
    from sglang_longflow.measure.accuracy import command  # late: it imports torch

    return command.run(args)
