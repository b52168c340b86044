# SPDX-License-Identifier: Apache-2.0
"""Texts of one length: problems with their solutions, packed one after the other."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_longflow.errors import ConfigError
from sglang_longflow.measure.accuracy.solved_files import read_pairs

PREFIX = "text:"
SOLUTION_KEYS = ("solution", "answer")
#: GSM8K's notes for a calculator, as in ``48/2=<<48/2=24>>24``.
CALCULATOR = re.compile(r"<<[^>]*>>")


@dataclass(frozen=True)
class TextTask:
    """Which texts.

    Attributes
    ----------
    file : Path
        JSON lines with ``question`` (or ``problem``, ``prompt``) and ``solution`` (or ``answer``).
    text_tokens : int
        Tokens of every text, its prompt included.
    prompt_tokens : int
        The first of these are prefilled, the others forced one by one.
    count : int
        Texts, at most.
    seed : int
        Of the problems' order.
    """

    file: Path
    text_tokens: int
    prompt_tokens: int
    count: int
    seed: int

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise ConfigError(f"prompt_tokens={self.prompt_tokens}: expected at least 1")
        if self.text_tokens <= self.prompt_tokens:
            raise ConfigError(
                f"text_tokens={self.text_tokens}: expected more than "
                f"prompt_tokens={self.prompt_tokens}"
            )

    @property
    def forced_tokens(self) -> int:
        """Tokens of a text whose distribution is measured."""
        return self.text_tokens - self.prompt_tokens

    @property
    def settings(self) -> dict[str, Any]:
        """What must not change while texts are added to a folder; the file is there."""
        return dict(
            task=f"{PREFIX}{self.file.resolve()}",
            content=hashlib.sha256(self.file.read_bytes()).hexdigest()[:16],
            text_tokens=self.text_tokens,
            prompt_tokens=self.prompt_tokens,
            seed=self.seed,
        )


def read_solved(file: Path) -> list[str]:
    """Every problem of a file with its solution, as text.

    Raises
    ------
    ConfigError
        No such file, a line that is no JSON object, or one without problem or solution.
    """
    if not file.is_file():
        raise ConfigError(f"task='{PREFIX}{file}': no such file; expected {PREFIX}FILE.jsonl")
    return [
        f"Problem: {question}\n\nSolution: {CALCULATOR.sub('', solution)}\n\n\n"
        for question, solution in read_pairs(file, f"{PREFIX}{file}", SOLUTION_KEYS)
    ]


def pack(problems: list[str], task: TextTask, tokenizer: Any) -> list[list[int]]:
    """Token ids of the texts, each of `task.text_tokens`.

    The problems are shuffled by the seed and written one after the other; a text begins with the
    next whole problem, and its last one is cut off. None is used twice, so a text never repeats
    another. Which text has which number depends on file, seed and length, not on the count.

    Raises
    ------
    ConfigError
        The file holds less than one text.
    """
    order = list(problems)
    random.Random(task.seed).shuffle(order)
    start = _first_tokens(tokenizer)
    texts: list[list[int]] = []
    ids = list(start)
    for piece in _encoded(order, tokenizer):
        ids += piece
        if len(ids) >= task.text_tokens:
            texts.append(ids[: task.text_tokens])
            ids = list(start)
            if len(texts) == task.count:
                break
    if not texts:
        raise ConfigError(
            f"text_tokens={task.text_tokens}: the {len(problems):,} problems of {task.file} have "
            f"{len(ids):,} tokens in all"
        )
    return texts


def _encoded(problems: list[str], tokenizer: Any) -> Iterator[list[int]]:
    for problem in problems:
        yield tokenizer(problem, add_special_tokens=False)["input_ids"]


def _first_tokens(tokenizer: Any) -> list[int]:
    """The token that this model's texts begin with, if there is one."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("1")["input_ids"][:1] == [bos] else []


def load_texts(task: TextTask, model: Path) -> list[list[int]]:
    """The texts of a task in a model's tokens."""
    from transformers import AutoTokenizer

    return pack(read_solved(task.file), task, AutoTokenizer.from_pretrained(model))
