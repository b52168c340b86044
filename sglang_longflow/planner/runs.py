# SPDX-License-Identifier: Apache-2.0
"""A measurement of answers: `longflow eval` of one model and task."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """A policy at a budget in tokens, 0 for full KV; shares of 1.

    ``overwrote`` is the share of answers that were long enough to overwrite something.
    """

    policy: str
    budget: int
    solved: float
    overwrote: float


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
    def full(self) -> Point | None:
        """Full KV's answers."""
        return next((point for point in self.points if not point.budget), None)
