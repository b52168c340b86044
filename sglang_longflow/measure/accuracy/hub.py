# SPDX-License-Identifier: Apache-2.0
"""Data sets by name, from the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sglang_longflow.errors import ConfigError
from sglang_longflow.measure.extra import require_extra
from sglang_longflow.settings.model_source import HUB_SECONDS, Why, ask_hub, endpoint


def after_hashes(answer: str) -> str:
    """GSM8K's ``... #### 2,125`` is 2125."""
    return answer.rpartition("####")[2].strip().replace(",", "")


def integer(answer: str) -> str:
    """AIME's ``073`` is 73."""
    return str(int(answer))


@dataclass(frozen=True)
class DataSet:
    """Where a data set is, and which columns count.

    Attributes
    ----------
    repository, config, split : str
        As `datasets.load_dataset` takes them; config "default" if there is only one.
    question, answer : str
        Columns.
    gold : callable
        The right answer out of the answer's column; ValueError if there is none.
    """

    repository: str
    config: str
    split: str
    question: str
    answer: str
    gold: Callable[[str], str] = str.strip


DATA_SETS = {
    "gsm8k": DataSet("openai/gsm8k", "main", "test", "question", "answer", after_hashes),
    "math500": DataSet("HuggingFaceH4/MATH-500", "default", "test", "problem", "answer"),
    "aime24": DataSet("HuggingFaceH4/aime_2024", "default", "train", "problem", "answer", integer),
}


@contextmanager
def _cache_alone_where_the_hub_is_silent(repository: str) -> Iterator[None]:
    """`datasets` asks a hub that does not answer for half a minute, a warning for each try."""
    from huggingface_hub import constants, get_session

    def ask() -> None:
        get_session().head(endpoint(), timeout=HUB_SECONDS)

    missing = None if Path(repository).exists() else ask_hub(repository, ask)
    before = constants.HF_HUB_OFFLINE
    if missing is not None and missing.why in (Why.NO_ANSWER, Why.TIMED_OUT):
        constants.HF_HUB_OFFLINE = True  # which `datasets` takes over when it is imported
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def download(name: str) -> list[tuple[str, str]]:
    """Every (question, right answer) of a data set, in its order; kept in the hub's cache.

    Raises
    ------
    ConfigError
        `datasets` is not installed, the set is neither in the cache nor to be reached, or it is not
        as it was known.
    """
    require_extra("datasets", f"task={name!r}", "--task FILE with JSON lines")
    known = DATA_SETS[name]
    where = f"task={name!r}: {known.repository} ({known.config}, {known.split})"
    try:
        with _cache_alone_where_the_hub_is_silent(known.repository):
            import datasets

            rows = list(datasets.load_dataset(known.repository, known.config, split=known.split))
    # Whatever the hub, the network, the cache or a changed repository raise: many classes.
    except Exception as error:
        raise ConfigError(
            f"{where} could not be downloaded: {type(error).__name__}: {str(error)[:300]}; where "
            f"the hub cannot be reached, give --task FILE with JSON lines (question, answer)"
        ) from None
    found = []
    for number, row in enumerate(rows):
        try:
            question, answer = row[known.question], row[known.answer]
            gold = "" if answer is None else known.gold(str(answer))
            if not question or not gold:
                raise ValueError("empty")
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"{where}: row {number} has no {known.question!r} and {known.answer!r} as they "
                f"were known: {error!r}"
            ) from None
        found.append((str(question), gold))
    if not found:
        raise ConfigError(f"{where}: no questions in it")
    return found


def digest(questions: list[tuple[str, str]]) -> str:
    """Changes with any question or answer."""
    return hashlib.sha256(json.dumps(questions).encode()).hexdigest()[:16]
