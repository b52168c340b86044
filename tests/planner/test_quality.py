# SPDX-License-Identifier: Apache-2.0
"""What is said of a model's answers: measured points by name, never one in between."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict

import pytest

from sglang_longflow.measure.accuracy.hub import DATA_SETS
from sglang_longflow.measure.accuracy.remember import remember
from sglang_longflow.measure.accuracy.summary import Line
from sglang_longflow.planner.api import plan
from sglang_longflow.planner.quality import (
    Asked,
    keep_run,
    known_quality,
    known_runs,
    model_names,
    quality_line,
    small_share_note,
)
from sglang_longflow.planner.runs import Point, Run
from sglang_longflow.reasoner import MODEL_DIR

POLICY = "longflow-novel"
NAME = "some-lab/Model-1B"


def run(*points: Point, model=NAME, questions=200, date="2026-11-30", task="gsm8k") -> Run:
    return Run(model, task, questions, date, "0.2.0", (Point("full", 0, 0.9, 0.0), *points))


def say(budget: int, *runs: Run, policy=POLICY, model=NAME) -> str:
    return quality_line(Asked(model, frozenset({model}), policy, budget), runs)


MEASURED = run(
    Point(POLICY, 512, 0.6, 1.0), Point(POLICY, 1024, 0.891, 0.9), Point("h2o", 256, 0.1, 1.0)
)
COMMAND = f"longflow eval --model {NAME} --task math500 --budgets {{}},full --out DIR"


def test_a_measured_budget():
    expected = "99 % of full KV's right answers at 1,024 (gsm8k, 200 questions, 2026-11-30)"
    assert say(1024, MEASURED) == expected


def test_between_two_budgets_both_are_named_and_none_is_made_up():
    text = say(800, MEASURED)
    assert text.startswith("not measured at 800; 67 % of full KV's right answers at 512, 99 % of")
    assert text.endswith(f"2026-11-30); {COMMAND.format(800).replace('math500', 'gsm8k')}")
    assert "at 512" not in say(4096, MEASURED) and "at 1,024" in say(4096, MEASURED)
    assert "at 512" in say(100, MEASURED) and "at 1,024" not in say(100, MEASURED)


def test_nothing_known():
    for text in (
        say(1024),
        say(1024, MEASURED, policy="longflow"),
        say(1024, run(Point(POLICY, 1024, 0.9, 1.0), model="other/model")),
        say(1024, Run(NAME, "gsm8k", 5, "2026-11-30", "", (Point(POLICY, 1024, 0.5, 1.0),))),
    ):
        assert text.startswith("not measured: longflow eval --model ")
    assert say(1024) == f"not measured: {COMMAND.format(1024)}"


def test_a_budget_that_holds_little_of_a_request_is_noted(cache):
    """The percentages are docs/choose-a-budget.md's: 8.4 and 91.6 of 97.0 %."""
    text = "the budget holds 7% of a request: in the one model measured, a tenth kept 9% of full "
    text += "KV's right answers, a fifth 94%"
    assert text in plan("Qwen/Qwen3-8B", gpu="L4-24G", users=20).notes
    assert not plan("Qwen/Qwen3-8B", gpu="L4-24G", budget=3200).notes
    known = quality_line(Asked(NAME, frozenset({NAME}), POLICY, 1024), [MEASURED])
    assert small_share_note(1024, 10_000, known) is None
    assert small_share_note(1024, 10_000, say(1024)) is not None


def test_the_task_that_is_proposed_is_one_of_evals():
    assert "math500" in DATA_SETS


def test_a_share_that_is_nearly_all_is_not_rounded_up():
    assert say(64, run(Point(POLICY, 64, 0.8964, 1.0))).startswith("99.6 %")
    assert say(64, run(Point(POLICY, 64, 0.9, 1.0))).startswith("100 %")


def test_answers_that_did_not_reach_the_budget_are_said_to():
    text = say(64, run(Point(POLICY, 64, 0.9, 0.12)))
    assert "at 64, where 12% of them reached the budget (gsm8k" in text


def test_the_budget_itself_then_the_newest():
    old = run(Point(POLICY, 100, 0.45, 1.0), date="2026-01-01")
    new = run(Point(POLICY, 100, 0.81, 1.0), date="2026-02-01")
    newest = run(Point(POLICY, 120, 0.9, 1.0), date="2026-03-01")
    assert say(100, old, newest, new).startswith("90 % of")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def line(variant: str, budget: int, accuracy: float) -> Line:
    return Line(variant, budget, 50, accuracy, 0.0, 1.0, 1.0, 1.0, 10.0, 10.0, 50)


def test_what_eval_measured_is_what_a_plan_says(cache):
    settings = {"model": "Qwen/Qwen3-8B", "task": "gsm8k", "max_new_tokens": 16}
    note = remember(settings, [line("full", 0, 0.8), line(POLICY, 1600, 0.6)], 50)
    assert note.startswith(f"kept for longflow plan in {cache}/quality/Qwen-Qwen3-8B-")
    remember(settings, [line("full", 0, 0.8), line(POLICY, 800, 0.4)], 50)
    found = plan("qwen3-8b", gpu="h100", budget=1600).quality
    assert found.startswith("75 % of full KV's right answers at 1,600 (gsm8k, 50 questions, 20")
    assert known_quality("Qwen/Qwen3-8B", POLICY, 800).startswith("50 % of")  # the first is kept
    assert plan("qwen3-4b", gpu="h100", budget=1600).quality.startswith("not measured: ")
    # Other questions are another measurement: points of the two are never compared.
    remember(settings, [line(POLICY, 1600, 0.9)], 60)
    assert len(known_runs()) == 2
    assert plan("qwen3-8b", gpu="h100", budget=1600).quality == found


def test_what_cannot_be_kept_or_read_is_said_or_left_out(cache, tmp_path):
    settings = {"model": NAME, "task": "gsm8k"}
    assert "no policy and budget has all its answers" in remember(settings, [], 5)
    cache.write_text("no folder")
    assert remember(settings, [line("full", 0, 0.8)], 5).startswith("not kept for longflow plan: ")
    cache.unlink()
    file = keep_run(MEASURED, settings)
    (file.parent / "cut.json").write_text(file.read_text()[:50])
    (file.parent / "other.json").write_text('{"points": [{"budget": 1}]}')
    assert known_runs() == [MEASURED]


def test_the_reasoner_is_known_wherever_it_lies(cache, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(MODEL_DIR, copy)
    for folder in (MODEL_DIR, copy):
        found = plan(folder, memory_gb=1, budget=345, prompt_tokens=100).quality
        assert found == (
            "94 % of full KV's right answers at 345 (reasoner, 500 questions, 2026-11-23)"
        )
    with (copy / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, 2)
        weights.write(b"\x7f")
    assert plan(copy, memory_gb=1, budget=345, prompt_tokens=100).quality.startswith("not measured")


def test_a_snapshot_of_the_cache_is_the_model_of_that_name(tmp_path):
    folder = tmp_path / "models--some-lab--Model-1B" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    assert NAME in model_names(str(folder))
    assert str(folder) in model_names(NAME, str(folder))
    assert model_names("x" * 300) == {"x" * 300}


@pytest.mark.parametrize("odd", ['"x"', "null", "[]", "1e999", "-1", "true", '"\\u001b[2J"'])
@pytest.mark.parametrize("field", [*asdict(MEASURED), *asdict(MEASURED.points[0])])
def test_a_kept_file_may_say_anything(tmp_path, field, odd):
    """It is left out, or every field is of its type: no plan ends because of it."""
    fields = asdict(MEASURED)
    for part in (fields, fields["points"][1]):
        if field in part:
            part[field] = "@"
    (tmp_path / "a.json").write_text(json.dumps(fields).replace('"@"', odd))
    for one in known_runs(tmp_path):
        assert quality_line(Asked(NAME, frozenset({NAME, one.model}), POLICY, 700), [one])
        assert one.task.isprintable()


def test_files_that_are_none(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "loop.json").symlink_to("loop.json")
    (tmp_path / "folder.json").mkdir()
    assert known_runs(tmp_path) == []
    assert known_runs(tmp_path / "deep.json") == []
    monkeypatch.setenv("LONGFLOW_CACHE", str(tmp_path / "deep.json"))
    assert "not measured" in known_quality(NAME, POLICY, 512)
