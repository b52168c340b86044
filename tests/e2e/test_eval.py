# SPDX-License-Identifier: Apache-2.0
"""`longflow eval` as a user runs it, with a model that learned for seconds: what counts is kept."""

import argparse
import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import sglang_longflow.cli.eval as evaluation
from harness import longflow_eval as evaluate
from sglang_longflow.errors import ConfigError, EvalError
from sglang_longflow.measure.accuracy import command
from sglang_longflow.measure.accuracy.ask import post
from sglang_longflow.measure.servers import running_server
from sglang_longflow.server.process import ServerEnded

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """From the training script itself, far from finished."""
    folder = tmp_path_factory.mktemp("reasoner")
    small = "--steps=40 --batch-tokens=3000 --longest=120 --hidden=128 --layers=2 --every=20"
    command = [sys.executable, "-W", "ignore", str(ROOT / "research" / "train_reasoner.py")]
    command += [f"--out={folder}", *small.split(), "--check=6", "--workers=1", "--device=cpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    log = json.loads((folder / "training.json").read_text())["log"]
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    return folder


@pytest.fixture(scope="module")
def shared_server(tiny_with_tokenizer):
    """The server that each of the runs below would start; a start takes long."""
    more = ["--max-total-tokens=3000", "--chunked-prefill-size=512"]
    with running_server(tiny_with_tokenizer, ("longflow", 0, 0), more, ["longflow"]) as url:
        yield url


@pytest.fixture
def evaluate_here(tiny_with_tokenizer, shared_server, monkeypatch, capsys):
    """``evaluate_here(*arguments)`` runs `longflow eval` on that server; returns what it prints."""

    @contextmanager
    def the_server(model, key, more, names, verbose=False, most_tokens=None):
        assert (model, key) == (tiny_with_tokenizer, ("longflow", 0, 0))
        yield shared_server

    def run(*arguments: str) -> str:
        parser = argparse.ArgumentParser()
        evaluation.add_arguments(parser)
        before = signal.getsignal(signal.SIGTERM)
        try:
            assert (
                evaluation.run(parser.parse_args([f"--model={tiny_with_tokenizer}", *arguments]))
                == 0
            )
        finally:
            signal.signal(signal.SIGTERM, before)
        return capsys.readouterr().out

    monkeypatch.setattr(command, "running_server", the_server)
    return run


def test_a_server_that_dies_while_it_is_asked_says_why(tiny_with_tokenizer):
    """And one that lives on is not blamed for a refusal."""
    more = ["--max-total-tokens=2000", "--chunked-prefill-size=512"]
    server = tiny_with_tokenizer, ("longflow", 0, 0), more, ["longflow"]

    def ask(url: str, budget: int) -> None:
        sampling = {"max_new_tokens": 1500, "custom_params": {"kv_budget": budget}}
        post(f"{url}/generate", {"input_ids": [5] * 9, "sampling_params": sampling})

    with (
        pytest.raises(
            ServerEnded,
            match=r"^the server ended while it was asked \((sig|exit).*\): killed by the kernel "
            r".*; --max-total-tokens 1000 makes the pool smaller$",
        ),
        running_server(*server) as url,
    ):
        with pytest.raises(EvalError, match=r"HTTP 400.*kv_budget=12"):
            ask(url, 12)
        found = [p for p in psutil.Process().children(recursive=True) if "scheduler" in p.name()]
        threading.Timer(1, found[0].kill).start()
        ask(url, 96)


def test_the_pool_fits_what_memory_there_is(tmp_path):
    """A limit under what is free: SGLang would take most of the machine's memory and fail."""
    common = ["--model=reasoner", f"--out={tmp_path}", "--longest=60", "--no-plot", "--count=2"]
    done = evaluate(*common, "--policies=longflow", "--budgets=full", address_bytes=12 << 30)
    assert done.returncode == 0, done.stderr
    assert "2 answers to get" in done.stdout
    assert re.search(r"KV pool: [\d,]+ tokens, what all requests at once need", done.stdout)
    assert re.search(r"^\[ *\d+s\] ready in \d+ s$", done.stdout, re.MULTILINE)


def test_answers_are_counted_kept_and_not_asked_for_again(model, tmp_path):
    common = [f"--model={model}", f"--out={tmp_path}", "--seed=7", "--longest=120"]
    common.append("--task=reasoner")
    server = ["--", "--max-total-tokens=3000", "--chunked-prefill-size=512"]
    first = evaluate(*common, "--policies=longflow;tova", "--budgets=40,full", "--count=3", *server)
    assert first.returncode == 0, first.stderr
    assert "9 answers to get, 0 are there" in first.stdout
    records = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    kept = {(r["variant"], r["budget"], r["number"]): r for r in records}
    names = [("full", 0), ("longflow", 40), ("tova", 40)]
    assert set(kept) == {(*name, number) for name in names for number in range(3)}
    for (_, budget, _), record in kept.items():
        assert record["resident_tokens"] <= (budget or 10**6)
        assert (record["overwritten_tokens"] > 0) <= bool(budget)
        assert record["generated_tokens"] > 0
    # What is there is not asked for again: no server starts.
    again = evaluate(*common, "--policies=longflow;tova", "--budgets=40,full", "--count=3")
    assert again.returncode == 0, again.stderr
    assert "0 answers to get, 9 are there" in again.stdout and "server" not in again.stdout
    with (tmp_path / "summary.csv").open() as file:
        rows = {(row["variant"], row["budget"]): row for row in csv.DictReader(file)}
    assert set(rows) == {("full", "0"), ("longflow", "40"), ("tova", "40")}
    assert all(row["answers"] == "3" for row in rows.values())
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_any_model_on_questions_of_a_file(evaluate_here, tmp_path):
    """At one budget answers reach it, at another none does; the table says so."""
    file, out = tmp_path / "questions.jsonl", tmp_path / "out"
    rows = [
        {"question": "What is 3 + 4?", "answer": "7"},
        {"question": "Tom has 5 boxes of 6 pears and eats 3. How many are left?", "answer": "27"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    printed = evaluate_here(
        *(f"--task={file}", f"--out={out}", "--policies=longflow"),
        *("--budgets=72,4000,full", "--max-new-tokens=48", "--no-plot"),
    )
    records = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert len(records) == 6 and not (out / "accuracy.png").exists()
    for record in records:
        total = record["prompt_tokens"] + record["generated_tokens"] - 1
        assert (record["overwritten_tokens"] > 0) == (record["budget"] == 72 and total > 72)
    with (out / "summary.csv").open() as table:
        shares = {row["budget"]: float(row["overwrote"]) for row in csv.DictReader(table)}
    assert shares["4000"] == shares["0"] == 0 < shares["72"]
    (warning,) = (line for line in printed.splitlines() if line.startswith("WARNING"))
    assert "says nothing about the budget" in warning and "longflow at 4,000 (0%)" in warning


def test_several_sampled_answers_a_question_and_more_of_them_later(evaluate_here, tmp_path):
    file, out = tmp_path / "questions.jsonl", tmp_path / "out"
    rows = [{"question": f"What is {n} + 4?", "answer": f"{n + 4}"} for n in (3, 30)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = [f"--task={file}", f"--out={out}", "--policies=longflow"]
    common += ["--budgets=72", "--max-new-tokens=32", "--no-plot"]
    sampled = ["--temperature=1.5", "--top-p=0.95"]
    printed = evaluate_here(*common, *sampled, "--samples=2")
    assert "2 questions" in printed and "4 answers to get, 0 are there" in printed
    assert "2 answers to get, 4 are there" in evaluate_here(*common, *sampled, "--samples=3")
    records = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert {(r["number"], r["sample"]) for r in records} == {
        (n, s) for n in (0, 1) for s in range(3)
    }
    (row,) = json.loads((out / "summary.json").read_text())
    assert (row["questions"], row["answers"]) == (2, 6)
    with pytest.raises(ConfigError, match="another model, task, seed or temperature"):
        evaluate_here(*common)


def test_a_data_set_that_cannot_be_had_is_said_before_a_server_starts(smollm2, tmp_path):
    out = tmp_path / "out"
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    asked = ["--task=gsm8k", "--budgets=96,full", f"--out={out}", "--no-plot"]
    done = evaluate(f"--model={smollm2}", *asked, env=offline)
    assert done.returncode == 2 and "server" not in done.stdout
    assert "task='gsm8k': openai/gsm8k (main, test) could not be downloaded" in done.stderr
    assert "Traceback" not in done.stderr and not out.exists()


def test_hugging_face_reads_the_model_and_its_words(model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sglang_longflow.reasoner import make_problems
    from sglang_longflow.reasoner.vocabulary import encode

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model)
    assert loaded.config.model_type == "qwen3" and loaded.config.head_dim == 64
    assert loaded.config.num_key_value_heads < loaded.config.num_attention_heads
    for problem in make_problems(1, 6):
        assert tokenizer(problem.prompt)["input_ids"] == encode(problem.prompt)
        assert tokenizer.decode(encode(problem.chain)[1:]) == problem.chain
