"""``longflow eval``: right answers by policy and budget, through a real server."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import groupby
from pathlib import Path

from sglang_longflow.errors import ConfigError
from sglang_longflow.evaluation.ask import ask_all, post
from sglang_longflow.evaluation.plot import draw, require_matplotlib
from sglang_longflow.evaluation.records import Record, Records
from sglang_longflow.evaluation.servers import running_server
from sglang_longflow.evaluation.summary import save, show, summarise
from sglang_longflow.evaluation.tasks import MathFile, Reasoner, Task
from sglang_longflow.evaluation.variants import FULL, Variant, parse_budget, parse_variant


def names(text: str) -> list[str]:
    return [name for name in text.split(";") if name]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        type=Path,
        required=True,
        help="model folder (or name, for a file's questions)",
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
        default=["longflow", "streaming:sinks=4", "random"],
        help="with semicolons, e.g. 'longflow;streaming:sinks=4;h2o'",
    )
    add(
        "--budgets",
        type=lambda text: text.split(","),
        default=["5%", "10%", "20%", "40%", FULL],
        help="tokens, shares of the mean reference chain, or full; default 5%%,10%%,20%%,40%%,full",
    )
    add("--task", default="reasoner", help="reasoner, or a file of JSON lines (question, answer)")
    add("--count", type=int, default=500, help="questions, at most")
    add("--max-new-tokens", type=int, default=16_384, help="of an answer, for a file's questions")
    add("--seed", type=int, default=2_000_001, help="of the reasoner's problems")
    add("--longest", type=int, default=4600, help="tokens of its longest reference chains")
    add("--concurrency", type=int, default=256, help="requests at once")
    add("--no-plot", dest="plot", action="store_false", help="no accuracy.png")
    add("--verbose", action="store_true", help="show the servers' output")
    add("server", nargs="*", help="more server arguments, after --")


class _Progress(AbstractContextManager["_Progress"]):
    """A bar on a terminal, a line for every tenth otherwise."""

    def __init__(self, title: str, total: int):
        self.title, self.total, self.done, self.right = title, total, 0, 0
        self._bar = None
        if sys.stdout.isatty():
            from rich.progress import Progress

            self._bar = Progress()
            self._task = self._bar.add_task(title, total=total)

    def __call__(self, record: Record) -> None:
        self.done += 1
        self.right += record.right
        text = f"{self.title}: {self.right / self.done:.1%} right"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, description=text)
        elif self.done == self.total or self.done % max(1, self.total // 10) == 0:
            print(f"  {text}, {self.done} of {self.total}", flush=True)

    def __enter__(self) -> _Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def plan(
    variants: list[Variant], budgets: list[int], count: int, done: set[tuple[str, int, int]]
) -> list[tuple[Variant, int, list[int]]]:
    """What is still to be asked: (variant, budget, numbers), those that share a server together."""
    wanted = [(Variant(FULL), 0)] if 0 in budgets else []
    wanted += [(variant, budget) for variant in variants for budget in budgets if budget]
    parts = []
    for variant, budget in wanted:
        left = [n for n in range(count) if (variant.name, budget, n) not in done]
        if left:
            parts.append((variant, budget, left))
    return sorted(parts, key=lambda part: part[0].server)


def task_of(args: argparse.Namespace) -> tuple[Task, dict]:
    """The task, and what must not change while answers are added to a folder."""
    model = str(args.model.resolve() if args.model.exists() else args.model)
    if args.task == Reasoner.name:
        reasoner = Reasoner(args.seed, args.count, args.longest)
        return reasoner, dict(model=model, task=args.task, seed=args.seed, longest=args.longest)
    file = Path(args.task)
    return (
        MathFile(file, args.model, args.count, args.max_new_tokens),
        dict(model=model, task=str(file.resolve()), max_new_tokens=args.max_new_tokens),
    )


def run(args: argparse.Namespace) -> int:
    """Ask what is missing, then write and print the tables."""
    for name in ("count", "concurrency", "max_new_tokens"):
        if getattr(args, name) < 1:
            raise ConfigError(f"{name}={getattr(args, name)}: expected at least 1")
    if args.plot:
        require_matplotlib()
    variants = [parse_variant(text) for text in args.policies]
    task, settings = task_of(args)
    budgets = [parse_budget(text, task.mean_chain_tokens) for text in args.budgets]
    count = len(task.questions)
    # Answers are kept as they come: SIGTERM ends the block below like Ctrl+C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with Records(args.out, settings) as records:
        parts = plan(variants, budgets, count, records.done())
        asked = sum(len(numbers) for _, _, numbers in parts)
        print(
            f"{count} questions; budgets "
            f"{', '.join(f'{b:,}' if b else FULL for b in budgets)}; {asked:,} answers to get, "
            f"{len(records.all):,} are there",
            flush=True,
        )
        for key, group in groupby(parts, key=lambda part: part[0].server):
            _with_server(args, key, list(group), task, records.add)
        lines = summarise(sorted(records.all, key=lambda r: (r.variant, r.budget or 10**9)))
    save(args.out, lines)
    if args.plot:
        draw(lines, args.out / "accuracy.png")
    show(lines)
    return 0


def _with_server(
    args: argparse.Namespace,
    key: tuple[str, int, int],
    parts: list[tuple[Variant, int, list[int]]],
    task: Task,
    keep: Callable[[Record], None],
) -> None:
    served = [part[0].name for part in parts]
    with running_server(args.model, key, args.server, served, args.verbose) as url:
        for variant, budget, numbers in parts:
            post(f"{url}/flush_cache", {})
            title = f"{variant.name}, {budget:,}" if budget else variant.name
            with _Progress(title, len(numbers)) as progress:

                def take(record: Record, progress: _Progress = progress) -> None:
                    keep(record)
                    progress(record)

                ask_all(url, task, variant, budget, numbers, args.concurrency, take)
