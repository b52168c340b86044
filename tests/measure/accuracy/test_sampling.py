# SPDX-License-Identifier: Apache-2.0
"""Several answers a question: what is sent, kept and counted, and how sure it is."""

import json
import random
import threading
import time
from argparse import Namespace
from dataclasses import asdict, replace

import pytest

from sglang_longflow.errors import ConfigError
from sglang_longflow.measure.accuracy.ask import ask_all
from sglang_longflow.measure.accuracy.records import Record, Records
from sglang_longflow.measure.accuracy.sampling import Sampling
from sglang_longflow.measure.accuracy.summary import (
    accuracy_of,
    show,
    summarise,
    warnings_of,
    wilson,
)
from sglang_longflow.measure.variants import Variant

RECORD = Record("longflow", 64, 0, "math", True, True, 90, 700, 64, 726, "7")


def test_greedy_is_the_default_and_says_nothing_else():
    assert Sampling() == Sampling(temperature=0.0, top_p=1.0, samples=1)
    assert Sampling().parameters(3, 0) == {"temperature": 0}
    assert Sampling().settings() == {}  # folders from before there was a choice go on


def test_each_sample_has_a_seed_of_its_own_which_it_keeps():
    sampling = Sampling(0.6, 0.95, 4)
    sent = [sampling.parameters(number, sample) for number in range(50) for sample in range(4)]
    assert all((p["temperature"], p["top_p"]) == (0.6, 0.95) for p in sent)
    seeds = [p["sampling_seed"] for p in sent]
    assert len(set(seeds)) == 200 and all(0 <= seed < 2**63 for seed in seeds)
    assert sampling.parameters(7, 2) == Sampling(0.6, 0.95, 9).parameters(7, 2)
    assert Sampling(0.6, 0.95, 9).settings() == sampling.settings()  # more of them later


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(temperature=-0.1), "temperature=-0.1: expected a number >= 0"),
        (dict(temperature=float("nan")), "temperature=nan: expected"),
        (dict(temperature=float("inf")), "temperature=inf: expected"),
        (dict(temperature=1.0, top_p=0.0), "top_p=0.0: expected"),
        (dict(temperature=1.0, top_p=1.1), "top_p=1.1: expected"),
        (dict(temperature=1.0, samples=0), "samples=0: expected at least 1"),
        (dict(samples=4), "samples=4: greedy answers to a question are all the same"),
        (dict(top_p=0.9), "top_p=0.9: has no effect on greedy answers"),
    ],
)
def test_what_cannot_be_sampled_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**values)


def test_what_is_sent_and_which_sample_a_record_is_of(monkeypatch):
    class Task:
        questions = [
            type("Question", (), dict(kind="math", prompt={"input_ids": [n]}, max_new_tokens=9))
            for n in range(2)
        ]

        def judge(self, question, answer):
            return answer["text"], answer["text"] == "right"

    def post(url, body):
        number, params = body["input_ids"][0], body["sampling_params"]
        assert params["max_new_tokens"] == 9 and params["temperature"] == 0.7
        assert params["custom_params"] == {"kv_budget": 64, "kv_policy": "tova"}
        sample, of = divmod(params["sampling_seed"], 1 << 32)
        assert of == number
        meta = dict(prompt_tokens=1, completion_tokens=2, kv_resident_tokens=3)
        meta |= dict(kv_overwritten_tokens=0, finish_reason={"type": "stop"})
        return {"text": "right" if sample == 1 else "wrong", "meta_info": meta}

    monkeypatch.setattr("sglang_longflow.measure.accuracy.ask.post", post)
    got = []
    wanted = [(0, 0), (1, 1), (0, 1)]
    parts = [(Variant("tova"), 64, wanted)]
    ask_all("url", Task(), parts, Sampling(0.7, 1.0, 2), 4, got.append)
    assert {record.key: record.right for record in got} == {
        ("tova", 64, 0, 0): False,
        ("tova", 64, 0, 1): True,
        ("tova", 64, 1, 1): True,
    }


def test_a_folder_from_before_there_were_samples_goes_on(tmp_path):
    old = asdict(RECORD)
    del old["sample"]
    (tmp_path / "answers.jsonl").write_text(json.dumps(old) + "\n")
    settings = {"model": "m", "seed": 1}
    (tmp_path / "settings.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    with Records(tmp_path, settings | Sampling().settings()) as records:
        assert records.done() == {("longflow", 64, 0, 0)}
    with pytest.raises(ConfigError, match="another model, task, seed or temperature"):
        Records(tmp_path, settings | Sampling(0.6).settings())


def some(right_by_question):
    return [
        replace(RECORD, number=number, sample=sample, right=bool(right))
        for number, of in enumerate(right_by_question)
        for sample, right in enumerate(of)
    ]


def test_one_sample_a_question_has_wilsons_interval():
    for right in (0, 1, 5, 10):
        accuracy, low, high = accuracy_of(some([[n < right] for n in range(10)]))
        assert accuracy == right / 10
        assert (low, high) == pytest.approx(wilson(right, 10))


def test_samples_that_agree_count_once_and_those_that_do_not_count_more():
    agree = accuracy_of(some([[n < 5] * 8 for n in range(10)]))
    assert agree[0] == 0.5 and agree[1:] == pytest.approx(wilson(5, 10))
    mixed = accuracy_of(some([[1, 0] * 4 for _ in range(10)]))
    assert mixed[0] == 0.5
    always = accuracy_of(some([[1] * 8 for _ in range(10)]))
    assert always[0] == 1.0 and always[1:] == pytest.approx(wilson(10, 10))
    assert mixed[1:] == pytest.approx(wilson(40, 80))  # and never more than answers
    # Shares of 1/8 and 7/8: variance 10/9 x 0.375^2 / 10, so 0.25 / 0.015625 = 16 answers.
    between = accuracy_of(some([[k < (7 if n % 2 else 1) for k in range(8)] for n in range(10)]))
    assert between[0] == 0.5 and between[1:] == pytest.approx(wilson(8, 16))


def test_a_question_with_more_samples_weighs_no_more():
    accuracy, low, high = accuracy_of(some([[1] * 9, [0], [0]]))
    assert accuracy == pytest.approx(1 / 3) and low < accuracy < high


def test_the_interval_covers_as_often_as_it_says():
    """Questions of very different difficulty, eight samples each; the truth is the mean of all."""
    draw = random.Random(5)
    rounds, clustered, independent = 600, 0, 0
    for _ in range(rounds):
        hard = [draw.betavariate(0.5, 0.75) for _ in range(40)]  # mean 0.4
        records = some([[draw.random() < p for _ in range(8)] for p in hard])
        _, low, high = accuracy_of(records)
        clustered += low <= 0.4 <= high
        low, high = wilson(sum(r.right for r in records), len(records))
        independent += low <= 0.4 <= high
    assert 0.93 <= clustered / rounds <= 0.97
    assert independent / rounds < 0.75


def test_the_table_warns_where_answers_did_not_reach_the_budget(capsys):
    def group(variant, budget, overwrote):
        return [
            replace(
                RECORD,
                variant=variant,
                budget=budget,
                number=n,
                overwritten_tokens=int(n < overwrote),
            )
            for n in range(10)
        ]

    enough = summarise(group("longflow", 64, 5) + group("full", 0, 0))
    assert warnings_of(enough) == []
    show(enough)
    assert "WARNING" not in capsys.readouterr().out
    lines = summarise(group("longflow", 64, 5) + group("longflow", 4000, 4) + group("tova", 64, 0))
    (text,) = warnings_of(lines)
    assert "says nothing about the budget" in text and "under 50%" in text
    assert text.endswith("longflow at 4,000 (40%), tova at 64 (0%)")
    show(lines)
    printed = capsys.readouterr().out
    assert text in printed
    assert printed.count("% !") == 2 and "40% !" in printed and "0% !" in printed


def test_the_table_says_how_many_questions_were_sampled(capsys):
    lines = summarise(some([[1, 0], [1, 1], [0, 0]]))
    assert (lines[0].questions, lines[0].answers, lines[0].accuracy) == (3, 6, 0.5)
    show(lines)
    assert "6 of 3" in capsys.readouterr().out


def test_a_signal_does_not_wait_for_long_answers(monkeypatch):
    """SIGTERM raises in this thread; the server, which ends the others' requests, comes after."""
    released = threading.Event()

    def ask_one(url, variant, budget, question, drawn):
        if question == 0:
            raise SystemExit(143)
        assert released.wait(600), "the server was never ended"

    monkeypatch.setattr("sglang_longflow.measure.accuracy.ask.ask_one", ask_one)
    task = Namespace(questions=[0, 1, 2, 3])
    wanted = [(number, 0) for number in (1, 2, 0, 3)]
    began = time.monotonic()
    try:
        with pytest.raises(SystemExit):
            ask_all("url", task, [(Variant("tova"), 64, wanted)], Sampling(), 3, list().append)
        assert time.monotonic() - began < 300
    finally:
        released.set()
