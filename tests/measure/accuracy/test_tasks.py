# SPDX-License-Identifier: Apache-2.0
"""Questions, and how answers are judged, on recorded answers."""

import json
from types import SimpleNamespace

import pytest

from sglang_longflow.errors import ConfigError
from sglang_longflow.measure.accuracy.command import task_of
from sglang_longflow.measure.accuracy.tasks import Question, Reasoner, judge_math, read_questions
from sglang_longflow.measure.variants import parse_budget
from sglang_longflow.reasoner.vocabulary import TOKEN_IDS, encode


def answered(text, reason="stop"):
    return {"output_ids": encode(text)[1:], "meta_info": {"finish_reason": {"type": reason}}}


def test_what_a_question_needs_at_most():
    assert Question("", {"input_ids": [1, 2, 3]}, "", 10).tokens == 13
    assert Question("", {"text": "héllo"}, "", 10).tokens == 16  # no more tokens than bytes


def test_a_chain_is_right_when_its_whole_answer_is_and_it_ended_by_itself():
    task = Reasoner(seed=3, count=6, longest=200)
    for question in task.questions:
        right = f"0 0 1 ans {question.answer}"
        assert task.judge(question, answered(right)) == (question.answer, True)
        assert task.judge(question, answered(right, "length")) == (question.answer, False)
        assert task.judge(question, answered(right + " 1"))[1] is False
        assert task.judge(question, answered(right.rpartition(" ")[0]))[1] is False
        assert task.judge(question, answered("0 0 1")) == (None, False)
        assert question.prompt["input_ids"][0] == TOKEN_IDS["<bos>"]
        assert question.max_new_tokens > 100


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        ("42", "So we add them up: \\boxed{42}.", True),
        ("42", "First \\boxed{41}? No. The final answer is \\boxed{42}", True),
        ("42", "She sells 7 and keeps 6 x 7, so the answer is 42", True),
        ("42", "\\boxed{43}", False),
        ("\\frac{1}{2}", "$x = 0.5$, so \\boxed{0.5}", True),
        ("2\\sqrt{3}", "\\boxed{\\sqrt{12}}", True),
        ("1200", "The cost is $1,200.", True),
        ("(1, 2)", "\\boxed{(1,2)}", True),
        ("7", "I ran out of room before", False),
        ("7", "", False),
        # leading zeros, thousands separators, units
        ("73", "The answer is \\boxed{073}.", True),
        ("25", "\\boxed{025}", True),
        ("2125", "\\boxed{2,125}", True),
        ("2125", "\\boxed{2{,}125}", True),
        ("2125", "\\boxed{\\$2,125}", True),
        ("2125", "So she earns $2,125 in all.", True),
        ("2125", "\\boxed{2}", False),
        ("2125", "\\boxed{2.125}", False),
        ("1000000", "\\boxed{1,000,000 \\text{ people}}", True),
        # what was thought first does not count
        ("42", "So \\boxed{41}. </think> The answer is 42.", True),
        ("41", "So \\boxed{41}. </think> The answer is \\boxed{42}.", False),
        ("41", "So \\boxed{41}. </think>", False),
    ],
)
def test_math_answers(gold, text, right):
    assert judge_math(gold, text)[1] is right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Let us see: 6 x 7 = 42", False),  # cut off where the right number was the last
        ("We get 42, so \\boxed{42", False),
        ("The answer is \\boxed{42}. Let me check that again: 6 x", True),
        ("The answer is \\boxed{42}. No: \\boxed{\\frac{4", True),
        ("The answer is \\boxed{\\frac{84}{2}}. No", True),
        ("The answer is \\boxed{41}. No: 42", False),
    ],
)
def test_of_an_answer_that_was_cut_off_only_a_box_counts(text, right):
    assert judge_math("42", text, finished=False)[1] is right


def test_questions_are_read_in_their_usual_spellings(tmp_path):
    file = tmp_path / "q.jsonl"
    rows = [
        {"question": "1+1?", "answer": "It is 2.\n#### 2"},
        {"problem": "2+2?", "solution": "\\frac{8}{2}"},
        {"prompt": "3+3?", "answer": 6},
    ]
    file.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    wanted = [("1+1?", "2"), ("2+2?", "\\frac{8}{2}"), ("3+3?", "6")]
    assert read_questions(file, 10) == wanted
    assert read_questions(file, 2) == wanted[:2]


@pytest.mark.parametrize("line", ["[]", "{}", "x", '{"question": "1"}', '{"answer": "1"}', "3"])
def test_a_line_without_question_or_answer_is_named(tmp_path, line):
    file = tmp_path / "q.jsonl"
    file.write_text('{"question": "1", "answer": "1"}\n' + line + "\n")
    with pytest.raises(ConfigError, match="line 2 is no JSON object with question"):
        read_questions(file, 10)


def test_a_missing_or_empty_file_is_named(tmp_path):
    with pytest.raises(
        ConfigError, match="no such file, and none of reasoner, gsm8k, math500, aime24"
    ):
        read_questions(tmp_path / "gsm8k", 10)
    (tmp_path / "q.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="no questions in it"):
        read_questions(tmp_path / "q.jsonl", 10)


def test_shares_need_reference_chains():
    with pytest.raises(ConfigError, match="no reference chains"):
        parse_budget("20%", None)
    assert parse_budget("20", None) == 20


def test_what_must_not_change_within_a_folder(tmp_path):
    args = SimpleNamespace(model=tmp_path, task="reasoner", seed=4, count=3, longest=150)
    task, settings = task_of(args)
    assert len(task.questions) == 3 and task.mean_chain_tokens
    assert settings == {"model": str(tmp_path), "task": "reasoner", "seed": 4, "longest": 150}
