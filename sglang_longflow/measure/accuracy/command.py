# SPDX-License-Identifier: Apache-2.0
"""What `longflow eval` does: what a policy and a budget cost, through a real server."""

from __future__ import annotations

import argparse
import hashlib
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence, Set
from contextlib import AbstractContextManager
from itertools import groupby
from pathlib import Path
from typing import Any

from sglang_longflow.errors import ConfigError
from sglang_longflow.measure.accuracy.ask import ask_all
from sglang_longflow.measure.accuracy.hub import DATA_SETS, digest, download
from sglang_longflow.measure.accuracy.records import Record, Records
from sglang_longflow.measure.accuracy.remember import remember
from sglang_longflow.measure.accuracy.sampling import Sampling
from sglang_longflow.measure.accuracy.summary import save, show, summarise
from sglang_longflow.measure.accuracy.tasks import MathQuestions, Reasoner, Task, read_questions
from sglang_longflow.measure.divergence.run import Setup, measure
from sglang_longflow.measure.divergence.summary import (
    TextRecord,
    draw_kl,
    show_texts,
    summarise_texts,
)
from sglang_longflow.measure.divergence.texts import PREFIX, TextTask, load_texts
from sglang_longflow.measure.extra import require_extra
from sglang_longflow.measure.plot import draw
from sglang_longflow.measure.servers import running_server
from sglang_longflow.measure.variants import (
    Variant,
    WorkItem,
    budget_text,
    parse_budget,
    parse_variant,
    plan,
    point_title,
)
from sglang_longflow.monitor.client import activity
from sglang_longflow.reasoner import MODEL_DIR
from sglang_longflow.server.pool_cap import tokens_for
from sglang_longflow.server.preflight import check_model
from sglang_longflow.server.progress import Bars, shared


class _Tally(AbstractContextManager["_Tally"]):
    """Right answers so far, at each point; a line for every tenth of one in a log."""

    def __init__(self, parts: Sequence[WorkItem]):
        self.totals = {(variant.name, budget): len(left) for variant, budget, left in parts}
        self.done: Counter[tuple[str, int]] = Counter()
        self.right: Counter[tuple[str, int]] = Counter()
        self._numbers = {point: number for number, point in enumerate(self.totals)}
        self._bars = Bars([(point_title(*point), n) for point, n in self.totals.items()])

    def add(self, record: Record) -> None:
        point = record.variant, record.budget
        self.done[point] += 1
        self.right[point] += record.right
        done, total = self.done[point], self.totals[point]
        text = f"{point_title(*point)}: {self.right[point] / done:.1%} right"
        self._bars.show(self._numbers[point], done, text, f"{done}/{total}")
        if done == total or done % max(1, total // 10) == 0:
            self._bars.say(f"  {text}, {done} of {total}")

    @property
    def counts(self) -> str:
        """Answers of all points."""
        return f"{sum(self.done.values()):,} of {sum(self.totals.values()):,} answers"

    def __enter__(self) -> _Tally:
        self._bars.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.__exit__(*exc)


def model_of(args: argparse.Namespace) -> str:
    """The same name from wherever a folder is given, or the shipped model is installed."""
    if args.model == MODEL_DIR:
        weights = (MODEL_DIR / "model.safetensors").read_bytes()
        return f"{Reasoner.name} {hashlib.sha256(weights).hexdigest()[:12]}"
    return str(args.model.resolve() if args.model.exists() else args.model)


def task_of(args: argparse.Namespace) -> tuple[Task, dict[str, Any]]:
    """The task, and what must not change while answers are added to a folder."""
    settings = dict(model=model_of(args), task=args.task)
    if args.task == Reasoner.name:
        reasoner = Reasoner(args.seed, args.count, args.longest)
        return reasoner, dict(settings, seed=args.seed, longest=args.longest)
    if args.task in DATA_SETS:
        questions = download(args.task)
        settings["questions"] = digest(questions)  # the hub may serve other ones some day
    else:
        questions = read_questions(Path(args.task), args.count)
        settings["task"] = str(Path(args.task).resolve())
    kind = args.task if args.task in DATA_SETS else MathQuestions.name
    task = MathQuestions(kind, questions[: args.count], args.model, args.max_new_tokens)
    return task, dict(settings, max_new_tokens=args.max_new_tokens)


def run_texts(args: argparse.Namespace, variants: list[Variant]) -> int:
    """Measure what is missing on texts, then write and print the tables."""
    file = Path(args.task.removeprefix(PREFIX))
    task = TextTask(file, args.text_tokens, args.prompt_tokens, args.count, args.seed)
    budgets = [parse_budget(text, task.text_tokens) for text in args.budgets]
    texts = load_texts(task, args.model)
    at_once = min(args.concurrency, len(texts))
    setup = Setup(args.model, task, texts, at_once, args.out, args.server, args.verbose)
    with Records(args.out, dict(model=model_of(args), **task.settings), TextRecord) as records:
        wanted = [(number,) for number in range(len(texts))]
        parts = plan(variants, budgets, wanted, records.done())
        shared().say(
            f"{len(texts)} texts of {task.text_tokens:,} tokens; budgets {_listed(budgets)}; "
            f"{sum(len(numbers) for _, _, numbers in parts):,} measurements to make, "
            f"{len(records.all):,} are there"
        )
        measure(setup, parts, records.add)
        lines = summarise_texts(sorted(records.all, key=lambda r: (r.variant, r.budget or 10**9)))
    save(args.out, lines, digits=8)
    if args.plot:
        draw_kl(lines, args.out / "kl.png")
    show_texts(lines)
    return 0


def whole_points(
    records: Sequence[Record], wanted: Set[tuple[int, ...]]
) -> tuple[list[Record], dict[tuple[str, int], int]]:
    """Records of the points that have every answer `wanted` (number, sample), and how many
    answers the other points have.

    Short chains end first, so what is there of a point that was broken off says nothing yet.
    """
    points: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        points.setdefault((record.variant, record.budget), []).append(record)
    whole, broken_off = [], {}
    for point, found in points.items():
        if wanted <= {(record.number, record.sample) for record in found}:
            whole += found
        else:
            broken_off[point] = len(found)
    return whole, broken_off


def _listed(budgets: list[int]) -> str:
    return ", ".join(map(budget_text, budgets))


def run(args: argparse.Namespace) -> int:
    """Ask what is missing, then write and print the tables."""
    for name in ("count", "concurrency", "max_new_tokens"):
        if getattr(args, name) < 1:
            raise ConfigError(f"{name}={getattr(args, name)}: expected at least 1")
    check_model(str(args.model))
    if args.plot:
        require_extra("matplotlib", "plot=True", "add --no-plot")
    variants = [parse_variant(text) for text in args.policies]
    sampling = Sampling(args.temperature, args.top_p, args.samples)
    # What is measured is kept as it comes: SIGTERM ends the blocks below like Ctrl+C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if args.task.startswith(PREFIX):
        if sampling != Sampling():
            raise ConfigError(
                f"temperature={args.temperature}: nothing is sampled from forced texts"
            )
        return run_texts(args, variants)
    task, settings = task_of(args)
    budgets = [parse_budget(text, task.mean_chain_tokens) for text in args.budgets]
    count = len(task.questions)
    # First one answer to every question, then the second.
    wanted = [(number, sample) for sample in range(sampling.samples) for number in range(count)]
    with Records(args.out, settings | sampling.settings()) as records:
        parts = plan(variants, budgets, wanted, records.done())
        asked = sum(len(numbers) for _, _, numbers in parts)
        shared().say(
            f"{count} questions; budgets {_listed(budgets)}; {asked:,} answers to get, "
            f"{len(records.all):,} are there"
        )
        for key, group in groupby(parts, key=lambda part: part[0].server):
            _with_server(args, key, list(group), task, sampling, records.add)
        found, broken_off = whole_points(records.all, set(wanted))
    lines = summarise(sorted(found, key=lambda r: (r.variant, r.budget or 10**9)))
    save(args.out, lines)
    note = remember(settings | sampling.settings(), lines, count)
    if args.plot:
        draw(lines, args.out / "accuracy.png")
    show(lines)
    for (variant, budget), answers in sorted(broken_off.items()):
        print(f"not in the tables: {variant}, {budget_text(budget)}: only {answers} answers so far")
    print(note)
    return 0


def _with_server(
    args: argparse.Namespace,
    key: tuple[str, int, int],
    parts: list[WorkItem],
    task: Task,
    sampling: Sampling,
    keep: Callable[[Record], None],
) -> None:
    served = [part[0].name for part in parts]
    asked = {number for _, _, wanted in parts for number, _ in wanted}
    longest = max(task.questions[number].tokens for number in asked)
    at_once = min(args.concurrency, sum(len(wanted) for _, _, wanted in parts))
    most = tokens_for(at_once, longest)
    with (
        running_server(args.model, key, args.server, served, args.verbose, most) as url,
        _Tally(parts) as tally,
        shared().sign_of_life(lambda: f"  {tally.counts}; {activity(url)}"),
    ):

        def take(record: Record) -> None:
            keep(record)
            tally.add(record)

        ask_all(url, task, parts, sampling, args.concurrency, take)
