# SPDX-License-Identifier: Apache-2.0
"""Chains are right: each kind is solved again from its prompt, by other code, and compared."""

import itertools
import random
import re
import statistics

import pytest

from sglang_longflow.reasoner import KINDS, answer_of, draw_length, make_problem, make_problems
from sglang_longflow.reasoner.vocabulary import TOKENS, decode, encode


def number(words):
    return int(words.replace(" ", ""))


def solve_machine(prompt):
    stop = number(re.search(r"steps ((\d ){3})", prompt).group(1))
    program = {
        m[1]: (int(m[2]) + int(m[3]), m[4], m[5])
        for m in re.finditer(r"([A-L]) : (\d) (\d) ([A-L]) ([A-L]) ;", prompt)
    }
    start, at = re.search(r"x (\d \d \d \d) > ([A-L]) go$", prompt).groups()
    queue = [int(digit) for digit in start.split()]
    for _ in range(stop):
        constant, even, odd = program[at]
        queue.append((queue.pop(0) + queue[-1] + constant) % 10)
        at = (even, odd)[queue[-1] & 1]
    return stop, " ".join(map(str, queue))


def solve_affine(prompt):
    stop = number(re.search(r"steps ((\d ){3})", prompt).group(1))
    found = re.finditer(r"d (\d) a (\d) b (\d \d) ;", prompt)
    table = {int(m[1]): (int(m[2]), number(m[3])) for m in found}
    x, y = (number(word) for word in re.search(r"x (\d \d) y (\d \d) go$", prompt).groups())
    for _ in range(stop):
        a, b = table[y % 10]
        x, y = (a * x + b + y) % 100, x
    return stop, " ".join(f"{x:02d}")


def solve_search(prompt):
    groups = re.findall(r"(g\d) (\d \d) ; (\d \d) ; (\d \d) ;", prompt)
    target = number(re.search(r"= (\d \d) go$", prompt).group(1))
    for leaf in itertools.product(range(3), repeat=len(groups)):
        total = sum(number(group[1 + c]) for group, c in zip(groups, leaf, strict=True))
        if total % 100 == target:
            return None, " ".join(f"{g[0]} {c + 1}" for g, c in zip(groups, leaf, strict=True))
    raise AssertionError("no leaf adds up to the target")


SOLVE = {"machine": solve_machine, "affine": solve_affine, "search": solve_search}


def problems(kind, count=60):
    return [p for p in make_problems(11, 3 * count) if p.kind == kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_follows_from_the_prompt(kind):
    for problem in problems(kind):
        stop, answer = SOLVE[kind](problem.prompt)
        assert problem.answer == answer == answer_of(problem.chain)
        if stop is not None:
            assert f"{' '.join(f'{stop:03d}')} " in problem.chain


@pytest.mark.parametrize("kind", KINDS)
def test_every_line_of_a_chain_is_true(kind):
    """Additions, products and copies, read off the chain itself."""
    for problem in problems(kind, 20):
        chain = problem.chain.partition(" ans ")[0]
        if kind == "search":
            target = re.search(r"= (\d \d) go$", problem.prompt).group(1)
            lines = re.findall(r"(g\d) \d (\d \d) \+ (\d \d) = (\d \d) ;", chain)
            leaves = re.findall(r"= (\d) (\d) ; (\d) (\d) \| (\d) (\d) (yes|no)", chain)
            assert len(lines) * 11 + len(leaves) * 6 == len(chain.split())
            for _, before, more, total in lines:
                assert (number(before) + number(more)) % 100 == number(total)
            assert [leaf[-1] for leaf in leaves] == ["no"] * (len(leaves) - 1) + ["yes"]
            for *digits, verdict in leaves:
                total, wanted, apart = (tuple(map(int, digits[i : i + 2])) for i in (0, 2, 4))
                assert wanted == tuple(map(int, target.split()))
                assert apart == tuple((w - t) % 10 for w, t in zip(wanted, total, strict=True))
                assert (total == wanted) == (verdict == "yes")
        elif kind == "affine":
            pattern = r"(\d) \* (\d) = (\d \d) ; (\d) \* (\d) = (\d \d) ;"
            lines = re.findall(pattern, chain)
            assert len(lines) * 37 == len(chain.split())
            for a, low, one, again, high, other in lines:
                assert a == again
                assert int(a) * int(low) == number(one) and int(a) * int(high) == number(other)
        else:
            early = re.findall(r"([A-L]) (\d) (\d) ([A-L]) a (\d) ;", chain)
            constants = {node: constant for _, _, _, node, constant in early}
            for again, one, other, node, constant in early:
                assert again == node and (int(one) + int(other)) % 10 == int(constant)
            node, digit = r"([A-L])", r"(\d)"
            values = f"a {digit} x {' '.join([digit] * 4)} = {digit} {digit}"
            lines = re.findall(f"{node} {values} > {node} {node} {node}", chain)
            assert len(lines) * 18 + len(early) * 7 == len(chain.split())
            for at, constant, *registers, total, result, even, odd, then in lines:
                assert constant == constants[at]
                assert (int(registers[0]) + int(registers[3])) % 10 == int(total)
                assert (int(total) + int(constant)) % 10 == int(result)
                assert then == (even, odd)[int(result) % 2]
            for line, after in itertools.pairwise(lines):
                assert after[0] == line[-1] and after[2:6] == (*line[3:6], line[7])


@pytest.mark.parametrize(("kind", "tokens"), [("machine", 18), ("affine", 37)])
def test_steps_are_counted_down_and_no_state_comes_twice(kind, tokens):
    """A chain that ran into a loop could be copied from the round before."""
    for problem in problems(kind, 20):
        steps = problem.chain.partition(" ans ")[0].rpartition(" ;" if kind == "machine" else "go")
        words = steps[2].split()
        lines = [words[i : i + tokens] for i in range(0, len(words), tokens)]
        left = [number(" ".join(line[:3])) for line in lines]
        assert left == list(range(len(lines), 0, -1))
        # x and y after the step; node and registers before it.
        states = [
            tuple(line[-5:] if kind == "affine" else (line[3], *line[7:11])) for line in lines
        ]
        assert len(set(states)) == len(states)


def test_a_problem_depends_on_its_seed_and_number_only():
    first = list(make_problems(5, 9))
    assert list(make_problems(5, 30))[:9] == first
    assert list(make_problems(6, 9)) != first
    assert len({problem.prompt for problem in make_problems(5, 600)}) == 600


def test_chains_are_long_and_fit_the_model():
    lengths = sorted(problem.chain_tokens for problem in make_problems(7, 900))
    assert statistics.mean(lengths) >= 1500
    assert lengths[len(lengths) * 9 // 10] >= 3000
    assert lengths[-1] + 200 < 8192 and lengths[0] >= 300


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [150, 700, 3000])
def test_a_chain_has_about_the_tokens_that_were_asked_for(kind, tokens):
    made = make_problem(kind, random.Random(tokens), tokens)
    assert 0.75 * tokens <= made.chain_tokens <= 1.35 * tokens + 40


def test_lengths_are_within_their_bounds():
    rng = random.Random(1)
    assert all(350 <= draw_length(rng) <= 4600 for _ in range(500))
    assert all(100 <= draw_length(rng, 200) <= 200 for _ in range(500))


def test_every_word_is_a_token():
    assert len(set(TOKENS)) == len(TOKENS) < 100
    for problem in make_problems(3, 60):
        for text in (problem.prompt, problem.chain):
            assert decode(encode(text)) == text
    with pytest.raises(KeyError):
        encode("machine stops")


@pytest.mark.parametrize(
    ("text", "answer"), [("a ans 1 2", "1 2"), ("ans 1 ans 4", "4"), ("1 2 3", None), ("", None)]
)
def test_the_answer_is_what_follows_the_last_ans(text, answer):
    assert answer_of(text) == answer
