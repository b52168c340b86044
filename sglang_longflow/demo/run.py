# SPDX-License-Identifier: Apache-2.0
"""``longflow demo``: one real server, the same questions with and without a budget."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path

from rich.console import Console

from sglang_longflow.client.http import first_port
from sglang_longflow.demo import report
from sglang_longflow.demo.ask import flush_cache, run_phase
from sglang_longflow.demo.live import ChainsView, QuestionsView
from sglang_longflow.demo.phase import DemoError, Phase, Question
from sglang_longflow.demo.questions import load_problems, load_questions, render_prompts
from sglang_longflow.demo.scenes import PROBLEMS, QUESTIONS, Scene, reasoner_scene
from sglang_longflow.errors import ConfigError
from sglang_longflow.reasoner import MODEL_DIR
from sglang_longflow.reasoner.problems import MAX_CHAIN_TOKENS, MIN_CHAIN_TOKENS
from sglang_longflow.reasoner.vocabulary import decode
from sglang_longflow.server.preflight import free_port
from sglang_longflow.server.process import Server
from sglang_longflow.server.progress import Progress, shared
from sglang_longflow.server.settings import prepare
from sglang_longflow.settings.flags import MIN_BUDGET_TOKENS

#: A machine that is busy with other work takes many times as long as a quiet one.
START_TIMEOUT_S = 1800.0
WIDTH_CHARACTERS = 80, 100


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
        *scene.server_arguments,
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


def _check(args: argparse.Namespace) -> None:
    """Refuse what needs no model to be judged.

    Raises
    ------
    ConfigError
        Naming the argument, its value and what is expected.
    """
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens={args.max_new_tokens}: expected at least 1")
    if args.requests is not None and not 1 <= args.requests <= QUESTIONS.requests:
        raise ConfigError(f"requests={args.requests}: expected 1 to {QUESTIONS.requests}")
    if not MIN_CHAIN_TOKENS <= args.chain_tokens <= MAX_CHAIN_TOKENS:
        raise ConfigError(
            f"chain_tokens={args.chain_tokens}: expected {MIN_CHAIN_TOKENS} to {MAX_CHAIN_TOKENS}, "
            f"what the reasoner was trained for"
        )
    if args.model and not args.questions:
        model = str(args.model)
        raise ConfigError(f"model={model!r}: the reasoner has a model of its own; add --questions")


def _check_budget(budget: int, pool: int) -> None:
    """As the server, but by the names that this command has for them.

    Raises
    ------
    ConfigError
        Naming the argument, its value and its limit.
    """
    if budget < MIN_BUDGET_TOKENS:
        raise ConfigError(f"budget={budget}: below the minimum {MIN_BUDGET_TOKENS}; give more")
    if budget > pool:
        raise ConfigError(
            f"budget={budget}: larger than the whole pool={pool}; lower --budget, or raise --pool"
        )


def _scene(args: argparse.Namespace) -> Scene:
    """The scene that is asked for; fills in what `args` leave open."""
    if args.questions:
        scene = QUESTIONS
    else:
        problems, longest = load_problems(args.requests or PROBLEMS, args.seed, args.chain_tokens)
        longest_chain = max(question.chain_tokens for question in problems)
        scene = reasoner_scene(longest_chain, longest)
    for name in ("budget", "max_new_tokens", "requests", "pool"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(scene, name))
    return scene


def _asked(args: argparse.Namespace, model: Path) -> list[Question]:
    """What is asked.

    Raises
    ------
    ConfigError
        The pool may be too small for an answer with full KV.
    """
    if args.questions:
        questions, longest = render_prompts(model, load_questions(args.requests))
    else:
        questions, longest = load_problems(args.requests, args.seed, args.chain_tokens)
    if longest + args.max_new_tokens >= args.pool:
        raise ConfigError(
            f"max_new_tokens={args.max_new_tokens}: with a prompt of {longest} tokens, "
            f"full KV needs more than the whole pool={args.pool}; raise --pool"
        )
    return questions


def _phases(
    url: str, args: argparse.Namespace, scene: Scene, questions: list[Question]
) -> list[Phase]:
    """The questions with the budget, then with full KV."""
    progress, phases = shared(), []
    parameters = {**scene.parameters, "max_new_tokens": args.max_new_tokens}
    how = f"a budget of {args.budget} slots each", "full KV, in the same pool"
    for part, (budget, text) in enumerate(zip((args.budget, 0), how, strict=True), 1):
        flush_cache(url)
        progress.say(f"part {part} of 2: {len(questions)} at once with {text}")
        view: ChainsView | QuestionsView = (
            QuestionsView(len(questions), args.max_new_tokens)
            if args.questions
            else ChainsView(Console(highlight=False))  # of the terminal's own width
        )
        with view, progress.sign_of_life(lambda: ""):  # the view is one
            phases.append(run_phase(url, questions, budget, parameters, view))
    return phases


def _ask_yourself(url: str, args: argparse.Namespace, question: Question) -> str:
    """A command that asks the demo's server something."""
    prompt = question.prompt.get("text") or decode(question.prompt["input_ids"])
    parameters = {
        "temperature": 0,
        "max_new_tokens": args.max_new_tokens,
        "custom_params": {"kv_budget": args.budget // 2},
    }
    body = json.dumps({"text": prompt, "sampling_params": parameters})
    return f"curl {url}/generate -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def run(args: argparse.Namespace) -> int:
    """Run the demo and print its tables."""
    _check(args)
    progress = shared()
    progress.adopt(os.environ.get("LONGFLOW_CLOCK"))  # `make demo` installs first
    narrowest, widest = WIDTH_CHARACTERS
    width = min(max(narrowest, shutil.get_terminal_size().columns), widest)
    console = Console(width=width, highlight=False)
    model = (args.model or _default_model(progress)) if args.questions else MODEL_DIR
    port = _port(args.port)
    scene = _scene(args)
    _check_budget(args.budget, args.pool)
    progress.say("checking the settings")
    settings, _ = prepare(_server_arguments(args, scene, model, port))
    settings.default("dtype", "bfloat16", "--dtype=bfloat16")  # on a CPU it is chosen by now
    echo = getattr(sys.stderr, "buffer", None) if args.verbose else None
    # Nothing here is worth draining: SIGTERM ends the block below like Ctrl+C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with Server(settings.arguments, settings.url, echo, settings.environment) as server:
        name = model.name if args.questions else "the reasoner"
        progress.say(f"starting a server for {name}: KV pool {args.pool:,} tokens")
        for label, text in settings.chosen:
            progress.say(f"{label} {text}")
        with progress.sign_of_life(lambda: f"still starting: {server.stage()}"):
            questions = _asked(args, model)
            seconds = server.wait_ready(START_TIMEOUT_S)
        progress.say(f"ready in {seconds:.0f} s; watch it at {settings.url}/longflow")
        try:
            budgeted, full = _phases(settings.url, args, scene, questions)
        except DemoError as error:
            raise server.end_of(error) from None
        report.show(console, budgeted, full, scene, None if args.questions else args.seed)
        progress.say(f"done; {report.machine_load()}")
        if args.stay:
            progress.say(f"the server stays until Ctrl+C: {settings.url}/longflow; ask it with")
            print(_ask_yourself(settings.url, args, questions[0]), flush=True)
            with progress.sign_of_life(lambda: ""), contextlib.suppress(KeyboardInterrupt):
                return server.wait()
    return 0
