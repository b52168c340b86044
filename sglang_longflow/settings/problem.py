# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a setting, in one line: field, value and limit, then the fix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sglang_longflow.errors import UnsupportedSetup


@dataclass(frozen=True)
class Problem:
    """One mistake.

    ``what`` names field, value and limit, as in ``page_size=16: a page of several tokens ...``;
    ``fix`` says what to change.
    """

    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}; {self.fix}"

    @classmethod
    def of(cls, error: Exception) -> Problem:
        """From an error of ours, whose fix stands behind its first semicolon."""
        what, _, fix = str(error).partition("; ")
        return cls(what, fix or "change that value")


def refuse_first(problems: Iterable[Problem]) -> None:
    """Raise UnsupportedSetup for the first of `problems`, if there is one."""
    for problem in problems:
        raise UnsupportedSetup(str(problem))
