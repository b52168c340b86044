# SPDX-License-Identifier: Apache-2.0
"""What is asked, and how an answer is judged."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from sglang_longflow.errors import ConfigError
from sglang_longflow.measure.accuracy.hub import DATA_SETS
from sglang_longflow.measure.accuracy.solved_files import read_pairs
from sglang_longflow.measure.extra import require_extra
from sglang_longflow.reasoner import answer_of, make_problems
from sglang_longflow.reasoner.vocabulary import decode, encode
from sglang_longflow.settings.nearest import nearest

#: A chain of the reasoner may go on for this share of the reference's length.
SLACK = 1.25
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
ANSWER_KEYS = ("answer", "solution")


@dataclass(frozen=True)
class Question:
    """One thing to ask.

    Attributes
    ----------
    kind : str
    prompt : dict
        ``{"text": ...}`` or ``{"input_ids": ...}``, as /generate takes it.
    answer : str
        The right one.
    max_new_tokens : int
    """

    kind: str
    prompt: dict[str, Any]
    answer: str
    max_new_tokens: int

    @property
    def tokens(self) -> int:
        """Of prompt and answer at most; a text has no more tokens than bytes."""
        prompt = self.prompt.get("input_ids") or self.prompt["text"].encode()
        return len(prompt) + self.max_new_tokens


class Task(Protocol):
    """Questions of one sort. `judge` runs in the main thread."""

    name: str

    @property
    def questions(self) -> list[Question]: ...

    @property
    def mean_chain_tokens(self) -> float | None:
        """Of the reference solutions; None if there are none."""

    def judge(self, question: Question, answer: dict[str, Any]) -> tuple[str | None, bool]:
        """What /generate's answer says, and whether that is right."""


class Reasoner:
    """Problems with long chains for the model of ``research/train_reasoner.py``."""

    name = "reasoner"

    def __init__(self, seed: int, count: int, longest: int):
        problems = list(make_problems(seed, count, longest))
        self.mean_chain_tokens: float | None = statistics.mean(p.chain_tokens for p in problems)
        self.questions = [
            Question(
                kind=problem.kind,
                prompt={"input_ids": encode(problem.prompt)},
                answer=problem.answer,
                max_new_tokens=int(problem.chain_tokens * SLACK) + 32,
            )
            for problem in problems
        ]

    def judge(self, question: Question, answer: dict[str, Any]) -> tuple[str | None, bool]:
        """Right where every word is, and the chain ended by itself."""
        found = answer_of(decode(answer["output_ids"]))
        return found, found == question.answer and is_finished(answer)


class MathQuestions:
    """Questions with a mathematical answer, read and compared by math-verify (`judge_math`).

    Parameters
    ----------
    kind : str
        Of all the questions.
    questions : list of (str, str)
        Question and right answer.
    model : Path
        Whose chat template and tokens are used.
    max_new_tokens : int
    """

    name = "math"

    def __init__(
        self, kind: str, questions: list[tuple[str, str]], model: Path, max_new_tokens: int
    ):
        require_extra("math_verify", "task")
        self.mean_chain_tokens: float | None = None
        self.questions = [
            Question(kind, {"input_ids": ids}, answer, max_new_tokens)
            for ids, (_, answer) in zip(render(questions, model), questions, strict=True)
        ]

    def judge(self, question: Question, answer: dict[str, Any]) -> tuple[str | None, bool]:
        """Right where math-verify takes it for equal; of an answer that was cut off only a box
        counts, as the last number of a broken chain is no answer."""
        return judge_math(question.answer, answer["text"], is_finished(answer))


def is_finished(answer: dict[str, Any]) -> bool:
    """Whether the model stopped by itself."""
    return bool(answer["meta_info"]["finish_reason"]["type"] == "stop")


def judge_math(gold: str, text: str, finished: bool = True) -> tuple[str | None, bool]:
    """The answer in `text` as written, and whether it equals `gold` (LaTeX or plain).

    What follows a reasoning model's ``</think>`` is its answer. In it the last box counts, else the
    expression; if the text is not `finished`, only a whole box.
    """
    from math_verify import parse, verify

    text = text.rpartition("</think>")[2]
    found = parse(text if finished else last_box(text))
    right = bool(found) and bool(verify(parse(f"\\boxed{{{gold}}}"), found))
    return (str(found[-1]) if found else None), right


def last_box(text: str) -> str:
    """The last ``\\boxed{...}`` of a text that is closed, or nothing."""
    start = len(text)
    while (start := text.rfind("\\boxed{", 0, start)) >= 0:
        depth = 0
        for end in range(start + len("\\boxed"), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if not depth:
                return text[start : end + 1]
    return ""


def read_questions(file: Path, count: int) -> list[tuple[str, str]]:
    """The first `count` (question, answer) of a file of JSON lines.

    A line has ``question`` (or ``problem``, ``prompt``) and ``answer`` (or ``solution``; of GSM8K's
    what follows ``####`` counts).

    Raises
    ------
    ConfigError
        No such file, a line that is no JSON object, or one without question or answer.
    """
    if not file.is_file():
        raise ConfigError(
            f"task={str(file)!r}: no such file, and none of {', '.join(['reasoner', *DATA_SETS])}"
            f"{nearest(str(file), ['reasoner', *DATA_SETS])}"
        )
    pairs = islice(read_pairs(file, str(file), ANSWER_KEYS), count)
    found = [(question, answer.rpartition("####")[2].strip()) for question, answer in pairs]
    if not found:
        raise ConfigError(f"task={str(file)!r}: no questions in it")
    return found


def render(questions: list[tuple[str, str]], model: Path) -> list[list[int]]:
    """Prompts in tokens, by the model's chat template (plain text where it has none).

    Templates write their own first token, which /generate would put before a text once more.

    Raises
    ------
    ConfigError
        There is no such model, here or on the hub.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model={str(model)!r}: no tokenizer: {error}") from None
    prompts = []
    for question, _ in questions:
        text = f"{question}\n\n{INSTRUCTION}"
        templated = bool(tokenizer.chat_template)
        if templated:
            messages = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        prompts.append(tokenizer(text, add_special_tokens=not templated)["input_ids"])
    return prompts
