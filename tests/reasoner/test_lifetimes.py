# SPDX-License-Identifier: Apache-2.0
"""A chain can be written from the tokens that are still of use; the others repeat what is known."""

import random
import re

import pytest

from sglang_longflow.reasoner import KINDS, make_problem
from sglang_longflow.reasoner.lifetimes import lifetimes


def drawn(kind, count=20):
    rng = random.Random(f"lifetimes/{kind}")
    return [make_problem(kind, rng, rng.randint(350, 3000)) for _ in range(count)]


def words_of(problem):
    return ["<bos>", *problem.prompt.split(), *problem.chain.split(), "<eos>"]


def live_text(problem, place):
    """What is still of use when the word at `place` is to be written, with spaces around."""
    ends = lifetimes(problem)
    words = words_of(problem)
    return f" {' '.join(words[j] for j in range(place) if place < ends[j])} "


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_and_answer_stay(kind):
    for problem in drawn(kind):
        ends, words = lifetimes(problem), words_of(problem)
        assert len(ends) == len(words)
        prompt = 1 + len(problem.prompt.split())
        answer = words.index("ans")
        assert set(ends[:prompt]) == set(ends[answer:]) == {len(words)}
        assert all(end > place for place, end in enumerate(ends))


def test_a_choice_finds_the_last_one_of_every_group():
    for problem in drawn("search"):
        words, last = words_of(problem), {}
        prompt = 1 + len(problem.prompt.split())
        for place in range(prompt, words.index("ans")):
            if words[place].startswith("g") and words[place] != "go":
                lines = re.findall(r"g\d \d \d \d \+ \d \d = \d \d ;", live_text(problem, place))
                assert sorted(lines) == sorted(last.values())
                last[words[place]] = " ".join(words[place : place + 11])


@pytest.mark.parametrize(("kind", "step"), [("machine", 18), ("affine", 37)])
def test_a_step_finds_the_one_before_and_no_other(kind, step):
    for problem in drawn(kind):
        words = words_of(problem)
        answer = len(words) - 1 - words[::-1].index("ans")
        prompt = len(problem.prompt.split()) + 1
        constants = 7 * sum(word == ":" for word in words[:prompt]) if kind == "machine" else 0
        first = prompt + constants
        for place in range(first + step, answer + 1, step):
            kept = " ".join([*words[:first], *words[place - step : place]])
            assert live_text(problem, place).strip() == kept


def test_few_tokens_are_of_use_at_once():
    """So that a budget of a fifth of a long chain has room for all of them."""
    for kind in KINDS:
        for problem in drawn(kind):
            ends = lifetimes(problem)
            for place in range(0, len(ends), 50):
                assert sum(place < end for end in ends[: place + 1]) <= 280
