# SPDX-License-Identifier: Apache-2.0
"""The two demos: their settings, unless the command line gives others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scene:
    """A demo's settings, unless the command line gives others.

    Attributes
    ----------
    budget, max_new_tokens, requests, pool : int
    policy : str
    parameters : dict
        More sampling parameters.
    closing : str
        Printed at the end.
    """

    budget: int
    max_new_tokens: int
    requests: int
    pool: int
    policy: str
    parameters: dict[str, Any]
    closing: str


QUESTIONS = Scene(
    budget=64,
    max_new_tokens=80,
    requests=8,
    pool=720,
    policy="longflow",
    # Every answer has the same length in both phases, so the phases do the same work.
    parameters={"ignore_eos": True},
    closing="These are answers of a small model (SmolLM2 has 135M parameters), too small to get "
    "such questions right with either cache. What is shown is memory. Answers do not stop at the "
    "end of their text, so that both phases do the same work.",
)
REASONER = Scene(
    budget=400,
    max_new_tokens=2500,
    requests=3,
    pool=4800,
    policy="longflow-novel",
    parameters={},
    closing="The model was trained for these problems alone and solves 97 % of them with full KV "
    "(docs/accuracy.md). Each chain runs until the model ends it.",
)
