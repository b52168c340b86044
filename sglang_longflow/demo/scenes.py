# SPDX-License-Identifier: Apache-2.0
"""The two demos: their settings, unless the command line gives others."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

#: Of the reasoner's problems: the length of their chains, their seed, how many are asked at once.
CHAIN_TOKENS = 2000
SEED = 3_000_001
PROBLEMS = 4
#: A fifth of the chains. A budget must also hold the prompt and what a step reads: chains of 350
#: tokens come out wrong in 150 slots.
BUDGET_TOKENS = 400
#: What follows from the problems' lengths is a multiple of this.
ROUND_TOKENS = 100
#: SGLang wants a pool that is a little larger than its longest request.
SLACK_TOKENS = 16


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


def _rounded_up(tokens: float) -> int:
    return math.ceil(tokens / ROUND_TOKENS) * ROUND_TOKENS


def reasoner_scene(longest_chain: int, longest_prompt: int) -> Scene:
    """The demo with the reasoner, for problems of these lengths in tokens.

    The pool holds one chain of full KV and not two. Of the default problems' budgets it holds six.
    """
    # A chain that went astray is cut off a little later than the reference ends.
    longest_answer = _rounded_up(1.05 * longest_chain)
    return Scene(
        budget=BUDGET_TOKENS,
        max_new_tokens=longest_answer,
        requests=PROBLEMS,
        pool=_rounded_up(longest_prompt + longest_answer + SLACK_TOKENS),
        policy="longflow-novel",
        # A message carries all text so far: one per token would keep a core busy that the model
        # needs.
        server_arguments=("--stream-interval=8",),
        closing="The model (7.9M weights) was trained for such problems. Of 500 with chains of all "
        "lengths it solves 97.0 % with full KV, 91.6 % with a budget of a fifth of the mean chain, "
        "8.4 % with a tenth (docs/accuracy.md). Times are a CPU's; docs/results.md has a GPU's.",
    )
