# SPDX-License-Identifier: Apache-2.0
"""The two demos: their settings, unless the command line gives others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: Chains of the reasoner's problems in the demo, and the seed that they are drawn from.
CHAIN_TOKENS = 2000
SEED = 3_000_001


@dataclass(frozen=True)
class Scene:
    """A demo's settings, unless the command line gives others.

    Attributes
    ----------
    budget, max_new_tokens, requests, pool : int
    policy : str
    closing : str
        Printed at the end.
    parameters : dict
        More sampling parameters.
    server_arguments : tuple of str
        More arguments of the server.
    """

    budget: int
    max_new_tokens: int
    requests: int
    pool: int
    policy: str
    closing: str
    parameters: dict[str, Any] = field(default_factory=dict)
    server_arguments: tuple[str, ...] = ()


REASONER = Scene(
    budget=400,
    max_new_tokens=2250,
    requests=4,
    # Six requests with the budget fit, and one chain of full KV.
    pool=2400,
    policy="longflow-novel",
    # A message carries all text so far: one per token would keep a core busy that the model needs.
    server_arguments=("--stream-interval=8",),
    closing="The model (7.9M weights) was trained for such problems. Of 500 with chains of all "
    "lengths it solves 97.0 % with full KV, 91.6 % with a budget of a fifth of the mean chain and "
    "8.4 % with a tenth (docs/accuracy.md). Times are a CPU's; docs/results.md has a GPU's.",
)
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
