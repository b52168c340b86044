# SPDX-License-Identifier: Apache-2.0
"""A measurement of answers: `longflow eval` of one model and task."""

from __future__ import annotations

from dataclasses import dataclass


def variant_name(policy: str, sinks: int = 0, recent: int = 0) -> str:
    """A policy with the tokens that a server protects for it, such as ``streaming:sinks=4``."""
    given = [("sinks", sinks), ("recent", recent)]
    options = ",".join(f"{name}={value}" for name, value in given if value)
    return f"{policy}:{options}" if options else policy


@dataclass(frozen=True)
class Point:
    """A policy (`variant_name`) at a budget in tokens, 0 for full KV; shares of 1.

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
