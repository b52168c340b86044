# SPDX-License-Identifier: Apache-2.0
"""How long the tokens of a reference chain are of use: what a perfect eviction could know."""

from __future__ import annotations

from collections.abc import Iterator

from sglang_longflow.reasoner.problems import (
    AFFINE_STEP_TOKENS,
    MACHINE_NODE_TOKENS,
    MACHINE_STEP_TOKENS,
    SEARCH_CHOICE_TOKENS,
    SEARCH_LEAF_TOKENS,
    Problem,
)
from sglang_longflow.reasoner.vocabulary import GROUPS


def lifetimes(problem: Problem) -> list[int]:
    """For each token, the first later one that can do without it, as positions in the sequence.

    The sequence is that of training: ``<bos>``, the prompt, the chain, ``<eos>``. Its length stands
    for tokens that are needed to the end: the prompt, a `machine`'s constants, the answer. A step
    is of use until the next one is written out, a choice in a group until the next choice in that
    group is (with it the sum of the path so far), a comparison with the target until the next one.
    """
    start = 1 + len(problem.prompt.split())
    words = problem.chain.split()
    total = start + len(words) + 1
    ends = [total] * total
    last: dict[str, range] = {}
    for what, part in _parts(problem.kind, words):
        for place in last.get(what, ()):
            ends[start + place] = start + part.stop
        last[what] = part
    return ends


def _parts(kind: str, words: list[str]) -> Iterator[tuple[str, range]]:
    """What each part of a chain stands for, and its words; the answer is none of them."""
    stop = words.index("ans")
    if kind == "search":
        place = 0
        while place < stop:
            what = words[place] if words[place] in GROUPS else "comparison"
            size = SEARCH_CHOICE_TOKENS if what in GROUPS else SEARCH_LEAF_TOKENS
            yield what, range(place, place + size)
            place += size
        return
    if kind == "machine":
        first, size = MACHINE_NODE_TOKENS * words[:stop].count(";"), MACHINE_STEP_TOKENS
    else:
        first, size = 0, AFFINE_STEP_TOKENS
    for place in range(first, stop, size):
        yield "step", range(place, place + size)
