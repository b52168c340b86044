# SPDX-License-Identifier: Apache-2.0
"""Answers on disk, one line of JSON each: a run that was broken off goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from sglang_longflow.errors import ConfigError
from sglang_longflow.measure.out_folder import writable_folder


@dataclass(frozen=True)
class Record:
    """One answer.

    Attributes
    ----------
    variant : str
        Name of the policy with its protections, or "full".
    budget : int
        0 for full KV.
    number : int
        Of the problem, in its seed.
    kind : str
    right : bool
    finished : bool
        It ended by itself (else it ran into its limit).
    prompt_tokens, generated_tokens, resident_tokens, overwritten_tokens : int
    answer : str or None
        What was read as the answer.
    sample : int
        Of the answers to one question; folders from before there were several have none.
    """

    variant: str
    budget: int
    number: int
    kind: str
    right: bool
    finished: bool
    prompt_tokens: int
    generated_tokens: int
    resident_tokens: int
    overwritten_tokens: int
    answer: str | None
    sample: int = 0

    @property
    def key(self) -> tuple[str, int, int, int]:
        return self.variant, self.budget, self.number, self.sample


class Records:
    """The records of a folder; `settings` must be those it was begun with.

    `kind` is their class: a dataclass with `key`.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], kind: type = Record):
        writable_folder(folder)
        known, self.path = folder / "settings.json", folder / "answers.jsonl"
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        begun = self.path.exists() and self.path.stat().st_size > 0
        if begun and known.exists() and known.read_text() != text:
            raise ConfigError(
                f"out={str(folder)!r}: holds answers of another model, task, seed or temperature "
                f"({known.name}); choose another folder"
            )
        known.write_text(text)
        self.all: list[Any] = []
        if self.path.exists():
            lines = self.path.read_text().splitlines()
            for number, line in enumerate(lines, 1):
                try:
                    self.all.append(kind(**json.loads(line)))
                except (ValueError, TypeError) as error:
                    if number < len(lines):  # the last one may have been cut off
                        raise ConfigError(f"{self.path}:{number}: not a record: {error}") from None
            whole = "".join(json.dumps(asdict(record)) + "\n" for record in self.all)
            self.path.write_text(whole)
        self._file = self.path.open("a")

    def done(self) -> set[tuple[Any, ...]]:
        """Keys of what is answered already."""
        return {record.key for record in self.all}

    def add(self, record: Any) -> None:
        self.all.append(record)
        self._file.write(json.dumps(asdict(record)) + "\n")
        self._file.flush()

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
