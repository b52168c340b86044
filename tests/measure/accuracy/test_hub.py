# SPDX-License-Identifier: Apache-2.0
"""Data sets by name: columns, right answers, and what is said where there is no hub.

The questions are from GSM8K (Cobbe et al., arXiv 2110.14168; MIT licence) and MATH (Hendrycks et
al., arXiv 2103.03874; MIT licence).
"""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from sglang_longflow.errors import ConfigError
from sglang_longflow.measure.accuracy import hub
from sglang_longflow.measure.accuracy.command import task_of
from sglang_longflow.measure.accuracy.hub import DATA_SETS, digest, download
from sglang_longflow.measure.accuracy.tasks import MathQuestions, judge_math
from sglang_longflow.settings.model_source import Missing, Why

ROWS = {
    "gsm8k": [
        {
            "question": "A robe takes 2 bolts of blue fiber and half that much white fiber.  How "
            "many bolts in total does it take?",
            "answer": "It takes 2/2=<<2/2=1>>1 bolt of white fiber\nSo the total amount of fabric "
            "is 2+1=<<2+1=3>>3 bolts of fabric\n#### 3",
        },
        {"question": "Two houses cost $1,000 and $1,125. And both?", "answer": "Both:\n#### 2,125"},
    ],
    "math500": [
        {
            "problem": "How many positive whole-number divisors does 196 have?",
            "solution": "First ... $\\boxed{9}$.",
            "answer": "9",
            "subject": "Number Theory",
            "level": 3,
            "unique_id": "test/number_theory/572.json",
        },
        {
            "problem": "If $f(x) = \\frac{3x-2}{x-2}$, what is the value of $f(-2) +f(-1)+f(0)$? "
            "Express your answer as a common fraction.",
            "solution": "...",
            "answer": "\\frac{14}{3}",
        },
    ],
    "aime24": [
        {
            "id": 60,
            "problem": "One?",
            "solution": "...",
            "answer": "073",
            "url": "",
            "year": "2024",
        },
        {
            "id": 61,
            "problem": "Two?",
            "solution": "...",
            "answer": "204",
            "url": "",
            "year": "2024",
        },
    ],
}
GOLD = {"gsm8k": ["3", "2125"], "math500": ["9", "\\frac{14}{3}"], "aime24": ["73", "204"]}


@pytest.fixture(autouse=True)
def hub_answers(monkeypatch):
    """Nothing here waits for a network."""
    monkeypatch.setattr(hub, "ask_hub", lambda *_: None)


@pytest.fixture
def repositories(tmp_path, monkeypatch):
    """The three sets as repositories in a folder, which the real library reads as from the hub."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name, known in DATA_SETS.items():
        folder = tmp_path / name
        (folder / "data").mkdir(parents=True)
        datasets.Dataset.from_list(ROWS[name]).to_parquet(folder / "data" / "rows.parquet")
        files = {"split": known.split, "path": "data/rows.parquet"}
        head = {"configs": [{"config_name": known.config, "data_files": [files]}]}
        (folder / "README.md").write_text(f"---\n{json.dumps(head)}\n---\n")
        monkeypatch.setitem(DATA_SETS, name, replace(known, repository=str(folder)))
    return tmp_path


@pytest.mark.parametrize("name", DATA_SETS)
def test_columns_become_questions_and_right_answers(repositories, name):
    found = download(name)
    column = DATA_SETS[name].question
    assert found == [(row[column], gold) for row, gold in zip(ROWS[name], GOLD[name], strict=True)]
    for _, gold in found:
        assert judge_math(gold, f"So it is \\boxed{{{gold}}}.")[1]


def test_the_usual_traps_of_right_answers():
    assert hub.after_hashes("5 x 2 = 10\n#### 1,234,567 ") == "1234567"
    assert hub.after_hashes("#### -4") == "-4"
    assert hub.integer("073") == "73" and hub.integer(" 000 ") == "0"


def test_a_task_by_name_and_what_its_folder_is_bound_to(repositories, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "sglang_longflow.measure.accuracy.tasks.render", lambda questions, _: [[1]] * len(questions)
    )
    args = SimpleNamespace(model=tmp_path, task="gsm8k", count=1, max_new_tokens=50)
    task, settings = task_of(args)
    assert isinstance(task, MathQuestions) and task.mean_chain_tokens is None
    assert [(q.kind, q.answer, q.max_new_tokens) for q in task.questions] == [("gsm8k", "3", 50)]
    whole = [(row["question"], gold) for row, gold in zip(ROWS["gsm8k"], GOLD["gsm8k"])]
    assert settings == {
        "model": str(tmp_path),
        "task": "gsm8k",
        "max_new_tokens": 50,
        "questions": digest(whole),  # of all, so that more can be asked later
    }
    assert digest(whole[:1]) != digest(whole)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ConfigError,
        match=r"task='gsm8k': datasets is not installed; pip install datasets, or",
    ):
        download("gsm8k")


@pytest.mark.parametrize(
    "error", [ConnectionError("no network"), ValueError("Unknown split"), FileNotFoundError("gone")]
)
def test_a_download_that_fails_is_said_with_a_way_out(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=fail))
    with pytest.raises(ConfigError) as caught:
        download("math500")
    text = str(caught.value)
    assert "task='math500': HuggingFaceH4/MATH-500 (default, test) could not be downloaded" in text
    assert str(error) in text and "--task FILE" in text


@pytest.mark.parametrize("why", [Why.NO_ANSWER, Why.NOT_FOUND])
def test_where_the_hub_is_silent_the_cache_alone_is_read(monkeypatch, why):
    seen = []

    def load(*_, **__):
        seen.append(constants.HF_HUB_OFFLINE)
        return [{"problem": "1?", "answer": "1"}]

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "ask_hub", lambda name, _: Missing(name, why))
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    assert download("aime24") == [("1?", "1")]
    assert (seen, constants.HF_HUB_OFFLINE) == ([why is Why.NO_ANSWER], False)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no questions in it"),
        ([{"problem": "1?", "solution": "1"}], "row 0 has no 'problem' and 'answer'"),
        ([{"problem": "1?", "answer": "1"}, {"problem": "2?", "answer": "two"}], "row 1 has no"),
        ([{"problem": "1?", "answer": None}], "row 0 has no"),
        ([{"problem": None, "answer": "1"}], "row 0 has no"),
    ],
)
def test_a_set_that_has_changed_is_refused(monkeypatch, rows, message):
    monkeypatch.setitem(
        sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: rows)
    )
    with pytest.raises(ConfigError, match=message):
        download("aime24")
