# SPDX-License-Identifier: Apache-2.0
"""A measurement of answers: `longflow eval` of one model and task."""

from __future__ import annotations

import datetime
from dataclasses import dataclass


def variant_name(policy: str, sinks: int = 0, recent: int = 0) -> str:
    """A policy with the tokens that a server protects for it, such as ``streaming:sinks=4``."""
    given = [("sinks", sinks), ("recent", recent)]
    options = ",".join(f"{name}={value}" for name, value in given if value)
    return f"{policy}:{options}" if options else policy


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


@dataclass(frozen=True)
class Point:
    """A policy (`variant_name`) at a budget in tokens, 0 for full KV; shares of 1.

    ``overwrote`` is the share of answers that were long enough to overwrite something.
    """

    policy: str
    budget: int
    solved: float
    overwrote: float

    @property
    def is_sound(self) -> bool:
        """Whether every field is what it is declared to be."""
        shares = (self.solved, self.overwrote)
        return (
            isinstance(self.policy, str)
            and _is_count(self.budget)
            and all(isinstance(share, int | float) and 0 <= share <= 1 for share in shares)
        )


@dataclass(frozen=True)
class Run:
    """Points that may be compared: the same model, task and questions.

    ``model`` is a name of the hub, a folder, or "reasoner" with its weights' hash; ``date`` is
    YYYY-MM-DD, ``version`` this package's.
    """

    model: str
    task: str
    questions: int
    date: str
    version: str
    points: tuple[Point, ...]

    @property
    def is_sound(self) -> bool:
        """Whether every field is what it is declared to be; a file may say anything."""
        texts = (self.model, self.task, self.date, self.version)
        if not all(isinstance(text, str) and text.isprintable() for text in texts):
            return False
        try:
            if datetime.date.fromisoformat(self.date).isoformat() != self.date:
                return False
        except ValueError:
            return False
        return _is_count(self.questions) and all(point.is_sound for point in self.points)

    @property
    def full(self) -> Point | None:
        """Full KV's answers."""
        return next((point for point in self.points if not point.budget), None)
