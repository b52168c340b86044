# SPDX-License-Identifier: Apache-2.0
"""Files of JSON lines, each with a question and what belongs to it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from sglang_longflow.errors import ConfigError

QUESTION_KEYS = ("question", "problem", "prompt")


def read_pairs(file: Path, task: str, answer_keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(question, answer) of every line that is not empty; the first key that is there counts.

    Raises
    ------
    ConfigError
        A line that is no JSON object, or one without question or answer; names `task` and line.
    """
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question = next(str(row[key]) for key in QUESTION_KEYS if key in row)
            answer = next(str(row[key]) for key in answer_keys if key in row)
        except (ValueError, TypeError, StopIteration):
            raise ConfigError(
                f"task={task!r}: line {number} is no JSON object with "
                f"{' or '.join(QUESTION_KEYS)}, and {' or '.join(answer_keys)}"
            ) from None
        yield question, answer
