# SPDX-License-Identifier: Apache-2.0
"""The reasoner's part of the demo: what is shown while it runs, and the tables after it."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from sglang_longflow.demo import live, report
from sglang_longflow.demo.live import ChainsView
from sglang_longflow.demo.phase import Answer, Phase
from sglang_longflow.demo.questions import load_problems
from sglang_longflow.demo.scenes import PROBLEMS, SEED, Scene, reasoner_scene

ROOT = Path(__file__).parents[2]
POOL = {"total_tokens": 2400, "available_tokens": 800, "evictable_tokens": 0}


def scene() -> Scene:
    problems, longest = load_problems(PROBLEMS)
    return reasoner_scene(max(one.chain_tokens for one in problems), longest)


def meta(prompt: int, generated: int, budget: int, reason: str | None = None) -> dict:
    stored = prompt + generated - 1
    held = min(stored, budget or stored)
    return {
        "prompt_tokens": prompt, "completion_tokens": generated, "kv_budget": budget,
        "kv_resident_tokens": held, "kv_overwritten_tokens": stored - held, "kv_cut_tokens": 0,
        "finish_reason": reason and {"type": reason}, "num_retractions": 0,
    }  # fmt: skip


def a_phase(budget: int) -> Phase:
    """Four problems, of which three run with a budget and one with full KV."""
    questions, _ = load_problems(PROBLEMS)
    phase = Phase(budget, [Answer(question) for question in questions])
    running = phase.answers[:3] if budget else phase.answers[:1]
    for answer in running:
        answer.take("x 1", meta(92, 1000, budget), 1.0)
    settings = {"kv_pool_bytes": 2400 * 4096}
    phase.observe({"pool": POOL, "requests": [{}] * len(running), "settings": settings})
    return phase


def finish(phase: Phase, wrong: int) -> Phase:
    for number, answer in enumerate(phase.answers):
        text = f"x ans {answer.question.right if number != wrong else '9 9'}"
        answer.take(text, meta(92, 2000, phase.budget, "stop"), 40.0 + 10 * number)
    phase.wall_s = 70.0
    return phase


def drawn(phase: Phase, encoding: str = "utf-8") -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    terminal = {"TERM": "xterm"}
    console = Console(file=out, force_terminal=True, width=80, color_system=None, _environ=terminal)
    with ChainsView(console) as view:
        view(phase, 3, "busy: last answer 9 s ago" if not phase.wall_s else "")
    out.seek(0)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.read())


def test_a_terminal_shows_each_chain_with_what_it_holds_and_what_full_kv_would():
    text = drawn(a_phase(400))
    row = next(line for line in text.splitlines() if line.strip().startswith("1 machine"))
    assert "█ slots held   ░ with full KV" in text
    held, full = row.count("█"), row.count("█") + row.count("░")
    # 400 and 1,091 slots on a scale that ends 5 % behind the longest chain.
    assert (held, full) == (round(28 * 400 / 2090.55), round(28 * 1091 / 2090.55))
    assert re.search(r"400 +1,091 +runs", row)
    assert re.search(r"4 machine +0 +0 +waits", text)
    assert "budget 400: 4.7 of 9.4 MiB (full KV: 12.8); " in text
    assert "busy: last answer 9 s ago" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_terminal_without_blocks_gets_other_signs():
    assert "#####-------" in drawn(a_phase(400), "ascii")


def test_a_finished_chain_says_whether_it_is_right():
    text = drawn(finish(a_phase(400), wrong=1))
    verdicts = re.findall(r"^ *\d \w+ .* (right|wrong) *$", text, re.MULTILINE)
    assert verdicts[-4:] == ["right", "wrong", "right", "right"]  # drawn once more at the end
    assert "all answered after 70 s; 114 tokens/s" in text


def test_a_log_gets_lines_on_one_clock(capsys, monkeypatch):
    monkeypatch.setattr(live, "CHAINS_LINE_INTERVAL_S", 3600.0)
    phase = a_phase(400)
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    with ChainsView(dumb) as view:
        view(phase, 3, "")
        view(phase, 3, "")  # too early for another line
        finish(phase, wrong=2)
        view(phase, 0, "")
        view(phase, 0, "")  # said once
    lines = re.findall(r"^\[ *\d+s\] (.*)\n", capsys.readouterr().out, re.MULTILINE)
    state = "1,091 in 400"
    rows = f"1: {state}  2: {state}  3: {state}  4: waits"
    assert lines[0] == f"budget 400  {rows}  4.7 of 9.4 MiB (full KV: 12.8)  0 tokens/s"
    right = [one.question.right for one in phase.answers]
    assert lines[1] == (
        f"budget 400: problem 1 (machine) is right: {right[0]}; 2,091 tokens in 400 slots, "
        f"after 40 s"
    )
    assert f"problem 3 (search) is wrong: 9 9 instead of {right[2]};" in lines[3]
    assert len(lines) == 5


def test_the_tables_say_what_was_held_and_which_answers_are_right(monkeypatch):
    monkeypatch.setattr(report, "next_heading", lambda: "Next:")  # else as long as a path
    out = io.StringIO()
    budgeted, full = finish(a_phase(400), wrong=1), finish(a_phase(0), wrong=-1)
    report.show(Console(file=out, width=80), budgeted, full, scene(), 7)
    text = out.getvalue()
    assert re.search(r"2 affine +92 +2,000 +400 +1\.6 +2,091 +8\.2 +81%", text)
    assert re.search(r"requests that the pool has room for +6 +1 *\n", text)
    assert re.search(r"peak running requests +3 of 4 +1 of 4 *\n", text)
    assert re.search(r"right answers +3 of 4 +4 of 4 *\n", text)
    right = budgeted.answers[2].question.right
    assert len(right) == 24  # the longest there is; it fits
    assert re.search(rf"3 search +{right} +{right} +right +right", text)
    assert re.search(rf"2 affine +{budgeted.answers[1].question.right} +9 9 +wrong +right", text)
    assert "the first 4 of seed 7." in text and "\nNext:\n" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("on_path", "folder", "heading"),
    [
        ("/usr/bin/longflow", ".", "Next:"),
        (None, ".", "Next, after `. .venv/bin/activate`:"),
        (None, "elsewhere", "Next, after `. {root}/.venv/bin/activate`:"),
        (None, "..", "Next, after `. {name}/.venv/bin/activate`:"),
    ],
)
def test_the_next_commands_say_how_to_find_longflow(
    tmp_path, monkeypatch, on_path, folder, heading
):
    """``make demo`` leaves it in .venv, where a shell does not look."""
    activate = tmp_path / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / folder)
    monkeypatch.setattr(report.sys, "executable", str(activate.with_name("python")))
    monkeypatch.setattr(report.shutil, "which", lambda name: on_path)
    assert report.next_heading() == heading.format(root=tmp_path, name=tmp_path.name)


def test_the_next_commands_of_an_environment_without_activate(tmp_path, monkeypatch):
    monkeypatch.setattr(report.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(report.shutil, "which", lambda name: None)
    assert report.next_heading() == "Next:"


def test_the_load_is_the_machines(monkeypatch):
    monkeypatch.setattr(report.os, "getloadavg", lambda: (1.0, 12.34, 3.0))
    monkeypatch.setattr(report.os, "cpu_count", lambda: 2)
    assert report.machine_load().endswith("load average 12.3 on 2 cores")


@pytest.mark.parametrize("seed", [SEED, 7, 1])
def test_the_pool_has_room_for_one_chain_with_full_kv_and_not_for_two(seed):
    problems, longest = load_problems(PROBLEMS, seed)
    shortest_chain = min(problem.chain_tokens for problem in problems)
    longest_chain = max(problem.chain_tokens for problem in problems)
    found = reasoner_scene(longest_chain, longest)
    assert longest_chain < found.max_new_tokens and longest + found.max_new_tokens < found.pool
    assert found.pool < longest_chain + shortest_chain
    assert found.pool >= PROBLEMS * found.budget


def test_the_default_is_what_the_pages_say():
    found = scene()
    assert (found.budget, found.pool, found.requests) == (400, 2400, 4)
    assert found.pool // found.budget == 6


def test_the_closing_words_are_what_was_measured():
    with (ROOT / "docs/results/accuracy.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "accuracy"]

    def solved(policy: str, budget: str) -> str:
        (value,) = {
            row["value"]
            for row in rows
            if (row["workload"], row["policy"], row["budget"]) == ("reasoner", policy, budget)
            and not row["part"]
        }
        return f"{100 * float(value):.1f} %"

    words = scene().closing
    assert f"{solved('full', '0')} with full KV" in words
    assert f"{solved('longflow-novel', '345')} with a budget of a fifth" in words
    assert f"{solved('longflow-novel', '172')} with a tenth" in words
