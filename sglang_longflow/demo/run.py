# SPDX-License-Identifier: Apache-2.0
"""``longflow demo``: one real server, the same questions with and without a budget."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import resources
from pathlib import Path
from typing import Any

from sglang_longflow.client.http import (
    NoResponse,
    ask,
    event_of,
    first_port,
    lines,
    opened,
    problem_of,
)
from sglang_longflow.demo import report
from sglang_longflow.demo.phase import Answer, Phase, Question
from sglang_longflow.demo.scenes import QUESTIONS, REASONER, Scene
from sglang_longflow.errors import ConfigError, LongFlowError, WatchError
from sglang_longflow.monitor.client import fetch_stats, state_text
from sglang_longflow.reasoner import KINDS, MODEL_DIR, make_problem
from sglang_longflow.reasoner.vocabulary import encode
from sglang_longflow.server.preflight import free_port
from sglang_longflow.server.process import Server
from sglang_longflow.server.progress import Bars, Progress, shared
from sglang_longflow.server.settings import prepare

POLL_INTERVAL_S = 0.2
LOOK_TIMEOUT_S = 8.0
LINE_INTERVAL_S = 5.0
#: A machine that is busy with other work takes many times as long as a quiet one.
START_TIMEOUT_S = 1800.0
REASONER_CHAIN_TOKENS = 2000
REASONER_SEED = 3_000_001


class DemoError(LongFlowError):
    """The demo could not be carried through."""

    exit_status = 1


def load_questions(count: int) -> list[str]:
    """The first `count` questions of the package's GSM8K sample."""
    text = (resources.files("sglang_longflow") / "demo/data/gsm8k_demo.jsonl").read_text("utf-8")
    questions = [json.loads(line)["question"] for line in text.splitlines()]
    return questions[:count]


def load_problems(count: int) -> tuple[list[Question], int]:
    """`count` of the reasoner's problems, the kinds in turn, and the tokens of the longest."""
    rng = random.Random(f"demo/{REASONER_SEED}")
    problems = [
        make_problem(KINDS[i % len(KINDS)], rng, REASONER_CHAIN_TOKENS) for i in range(count)
    ]
    found = [Question({"input_ids": encode(p.prompt)}, p.kind, p.answer) for p in problems]
    return found, max(len(question.prompt["input_ids"]) for question in found)


def render_prompts(model: Path, questions: list[str]) -> tuple[list[Question], int]:
    """Questions in the model's chat format, and the tokens of the longest."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model))
    except (OSError, ValueError) as error:
        raise DemoError(f"model={str(model)!r}: its tokenizer cannot be loaded: {error}") from error
    prompts = questions
    if tokenizer.chat_template:
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
            )
            for question in questions
        ]
    longest = max(len(tokenizer(prompt)["input_ids"]) for prompt in prompts)
    return [Question({"text": prompt}) for prompt in prompts], longest


def _ask(url: str, answer: Answer, parameters: dict[str, Any]) -> None:
    """Stream one request into `answer`; each runs in a thread."""
    body = {**answer.question.prompt, "sampling_params": parameters, "stream": True}
    try:
        # No limit: the connection ends with the server, and a slow machine may take any time.
        with opened(f"{url}/generate", body, timeout_s=None) as response:
            if not response.is_success:
                response.read()
                answer.problem = f"HTTP {response.status_code}: {response.text[:300]}"
                return
            for event in filter(None, map(event_of, lines(response))):
                if problem := problem_of(event):
                    answer.problem = problem
                    return
                answer.text, answer.meta = event["text"], event["meta_info"]
    except NoResponse as error:
        answer.problem = str(error)
    except (ValueError, KeyError) as error:
        answer.problem = f"{type(error).__name__}: {error}"


def run_phase(
    url: str,
    questions: list[Question],
    budget: int,
    parameters: dict[str, Any],
    show: Callable[[Phase, int, str], None],
) -> Phase:
    """Send every question at once and watch the server until all are answered.

    `show` gets the requests that run, and a note if the stats could not be read. A failed look is
    no sample. Only the requests tell whether the server lives: their connections end with it.

    Raises
    ------
    DemoError
        A request was not answered.
    """
    phase = Phase(budget, [Answer(question) for question in questions])
    parameters = {**parameters, "temperature": 0, "custom_params": {"kv_budget": budget}}
    threads = [
        threading.Thread(target=_ask, args=(url, answer, parameters), daemon=True)
        for answer in phase.answers
    ]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    running = 0
    while any(thread.is_alive() for thread in threads):
        try:
            stats = fetch_stats(url, timeout_s=LOOK_TIMEOUT_S, max_age_s=0)
        except WatchError:
            note = "the server is too busy to say what it does"
        else:
            running, note = phase.observe(stats), state_text(stats)
        show(phase, running, note)
        time.sleep(POLL_INTERVAL_S)
    phase.wall_s = time.monotonic() - start
    show(phase, 0, "")
    for number, answer in enumerate(phase.answers, 1):
        if answer.problem:
            raise DemoError(f"{phase.name}, request {number}: {answer.problem}")
    return phase


def flush_cache(url: str) -> None:
    """No phase profits from prompts that the other left in the prefix cache.

    Raises
    ------
    DemoError
        Requests still run after ten minutes; they have all been answered.
    """
    try:
        # Waits, because the last rows may not be free yet.
        response = ask(f"{url}/flush_cache?timeout=600", {}, timeout_s=None)
    except NoResponse as error:
        raise DemoError(f"{url}/flush_cache: {error}") from None
    if not response.is_success:
        reason = f"HTTP {response.status_code}: {response.text[:300]}"
        raise DemoError(f"{url}/flush_cache: {reason}")


class _Show(AbstractContextManager["_Show"]):
    """A phase as it goes on: a bar for each request, or a line every 5 s in a log."""

    def __init__(self, requests: int, max_new_tokens: int):
        self._each, self._total = max_new_tokens, requests * max_new_tokens
        parts = [(f"request {i + 1}", max_new_tokens) for i in range(requests)]
        self._bars = Bars(parts, line_every_s=LINE_INTERVAL_S)

    def __call__(self, phase: Phase, running: int, note: str) -> None:
        rest = f"; {note}" if note else ""
        for number, answer in enumerate(phase.answers):
            budget, resident = phase.budget, answer.meta.get("kv_resident_tokens", 0)
            slots = f"{resident}/{budget} slots" if budget else f"{resident} slots"
            done = answer.generated_tokens
            text = f"{phase.name} {slots:>14}{rest}"
            self._bars.show(number, done, text, f"{done}/{self._each}")
        line = (
            f"{phase.name}: {running} running, {phase.generated_tokens:,} of "
            f"{self._total:,} tokens{rest}"
        )
        self._bars.say(line, now=bool(phase.wall_s))

    def __enter__(self) -> _Show:
        self._bars.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.__exit__(*exc)


def _server_arguments(args: argparse.Namespace, scene: Scene, model: Path, port: int) -> list[str]:
    return [
        str(model),
        f"--port={port}",
        f"--kv-budget={args.budget}",
        f"--kv-policy={scene.policy}",
        "--kv-budget-allow-full",
        f"--max-total-tokens={args.pool}",
        "--random-seed=1",
        "--log-level=warning",
    ]


def _default_model(progress: Progress) -> Path:
    from sglang_longflow.demo.model import prepare_model

    return prepare_model(progress=progress.say)


def _port(text: str) -> int:
    if text == "auto":
        return free_port("127.0.0.1", first_port())
    if not text.isdecimal():
        raise ConfigError(f"port={text!r}: expected a number, or auto")
    return int(text)


def _scene(args: argparse.Namespace) -> Scene:
    """The scene that is asked for; fills in what `args` leave open, and checks them."""
    scene = REASONER if args.reasoner else QUESTIONS
    for name in ("budget", "max_new_tokens", "requests", "pool"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(scene, name))
    if args.max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens={args.max_new_tokens}: expected at least 1")
    if not 1 <= args.requests <= QUESTIONS.requests:
        raise ConfigError(f"requests={args.requests}: expected 1 to {QUESTIONS.requests}")
    if args.reasoner and args.model:
        raise ConfigError(f"model={str(args.model)!r}: --reasoner has a model of its own")
    return scene


def run(args: argparse.Namespace) -> int:
    """Run the demo and print its tables."""
    scene = _scene(args)
    progress = shared()
    progress.adopt(os.environ.get("LONGFLOW_CLOCK"))  # `make demo` installs first
    model = MODEL_DIR if args.reasoner else args.model or _default_model(progress)
    port = _port(args.port)
    progress.say("checking the settings")
    settings, _ = prepare(_server_arguments(args, scene, model, port))
    settings.default("dtype", "bfloat16", "--dtype=bfloat16")  # on a CPU it is chosen by now
    echo = getattr(sys.stderr, "buffer", None) if args.verbose else None
    # Nothing here is worth draining: SIGTERM ends the block below like Ctrl+C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with Server(settings.arguments, settings.url, echo, settings.environment) as server:
        name = "the reasoner" if args.reasoner else model.name
        progress.say(f"starting a server for {name}: KV pool {args.pool:,} tokens")
        for label, text in settings.chosen:
            progress.say(f"{label} {text}")
        with progress.sign_of_life(lambda: f"still starting: {server.stage()}"):
            questions, longest = (
                load_problems(args.requests)
                if args.reasoner
                else render_prompts(model, load_questions(args.requests))
            )
            if longest + args.max_new_tokens >= args.pool:
                raise ConfigError(
                    f"max_new_tokens={args.max_new_tokens}: with a prompt of {longest} tokens, "
                    f"full KV needs more than the whole pool={args.pool}"
                )
            seconds = server.wait_ready(START_TIMEOUT_S)
        progress.say(f"ready in {seconds:.0f} s; asking {len(questions)} questions at once")
        parameters = {**scene.parameters, "max_new_tokens": args.max_new_tokens}
        phases = []
        try:
            for budget in (args.budget, 0):
                flush_cache(settings.url)
                with (
                    _Show(len(questions), args.max_new_tokens) as show,
                    progress.sign_of_life(lambda: ""),  # the bars and lines are one
                ):
                    phases.append(run_phase(settings.url, questions, budget, parameters, show))
        except DemoError as error:
            raise server.end_of(error) from None
    report.show(*phases, closing=scene.closing, total_s=progress.elapsed_s())
    return 0
