# SPDX-License-Identifier: Apache-2.0
"""Problems with long chains of steps: a prompt with few facts, and the chain that follows.

Every step reads facts of the prompt, or results far behind, and most of what it writes is of no
use later: what a KV cache should keep is little, and only use shows which. Three kinds:

- ``machine``: a program of up to 12 instructions jumps about and feeds a shift register. Each
  instruction's constant is worked out first; a step needs the constant (an early result) and the
  two targets (in the prompt) of the instruction that it has come to.
- ``affine``: ``x, y <- (a x + b + y) mod 100, x`` in written arithmetic, where ``a`` and ``b`` are
  looked up in the prompt by the last digit of ``y``.
- ``search``: choose one of three numbers in each of five groups so that they add up to a target,
  depth first. A step back needs the choice and the partial sum of a group visited long before; each
  leaf is compared with the target, which stands in the prompt.

No state comes twice in a chain, so it cannot be copied from an earlier round of a loop. The first
two count their steps down, so that a chain's end shows where it is. All words are tokens of
`vocabulary`. A chain ends with ``ans`` and the answer.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sglang_longflow.reasoner.vocabulary import GROUPS, NODES

#: Lengths of chains are spread evenly in their logarithm between these.
MIN_CHAIN_TOKENS, MAX_CHAIN_TOKENS = 350, 4600
MAX_SEARCH_TOKENS = 3600  # all 243 leaves of five groups take more
MACHINE_NODE_TOKENS, MACHINE_STEP_TOKENS, AFFINE_STEP_TOKENS = 7, 18, 37
SEARCH_CHOICE_TOKENS, SEARCH_LEAF_TOKENS = 11, 6


@dataclass(frozen=True)
class Problem:
    """One problem and its reference solution.

    Attributes
    ----------
    kind : str
    prompt, chain, answer : str
        Words with spaces between. The chain ends with ``ans`` and the answer.
    """

    kind: str
    prompt: str
    chain: str
    answer: str

    @property
    def chain_tokens(self) -> int:
        return len(self.chain.split())


def answer_of(chain: str) -> str | None:
    """What follows the last ``ans`` of a chain; None if there is none."""
    _, found, answer = f" {chain} ".rpartition(" ans ")
    return " ".join(answer.split()) if found else None


def _digits(number: int, width: int) -> str:
    return " ".join(f"{number:0{width}d}")


def _countdown(steps: int) -> Iterator[str]:
    """What is left, in words, from `steps` down to 1."""
    return (_digits(left, 3) for left in range(steps, 0, -1))


def _cycle(rng: random.Random, nodes: Sequence[str]) -> dict[str, str]:
    """Each node's next in a ring through all of them, so that none is out of reach."""
    ring = rng.sample(nodes, len(nodes))
    return dict(zip(ring, [*ring[1:], ring[0]], strict=True))


def _machine(rng: random.Random, target_tokens: int) -> Problem:
    """First 7 tokens a node, its constant worked out; then 18 a step: what is left, the node and
    its constant, four registers, two sums, where the parity leads."""
    nodes = NODES[: rng.randint(8, len(NODES))]
    tokens = target_tokens - MACHINE_NODE_TOKENS * len(nodes)
    steps = max(2, min(999, tokens // MACHINE_STEP_TOKENS))
    while True:
        given = {node: (rng.randrange(10), rng.randrange(10)) for node in nodes}
        constants = {node: sum(given[node]) % 10 for node in nodes}
        even = _cycle(rng, nodes)
        odd = {node: rng.choice([n for n in nodes if n != even[node]]) for node in nodes}
        first = registers = tuple(rng.randrange(10) for _ in range(4))
        node, seen, lines = nodes[0], set(), []
        for left in _countdown(steps):
            if (node, registers) in seen:
                break
            seen.add((node, registers))
            total = (registers[0] + registers[3]) % 10
            result = (total + constants[node]) % 10
            then = (even, odd)[result % 2][node]
            lines.append(
                f"{left} {node} a {constants[node]} x {' '.join(map(str, registers))} = "
                f"{total} {result} > {even[node]} {odd[node]} {then}"
            )
            registers, node = (*registers[1:], result), then
        else:
            break
    facts = [f"{n} : {p} {q} {even[n]} {odd[n]} ;" for n, (p, q) in given.items()]
    rng.shuffle(facts)
    start = " ".join(map(str, first))
    prompt = f"machine steps {_digits(steps, 3)} ; {' '.join(facts)} x {start} > {nodes[0]} go"
    worked_out = " ".join(f"{n} {p} {q} {n} a {constants[n]} ;" for n, (p, q) in given.items())
    answer = " ".join(map(str, registers))
    return Problem("machine", prompt, f"{worked_out} {' '.join(lines)} ans {answer}", answer)


def _affine(rng: random.Random, target_tokens: int) -> Problem:
    """37 tokens a step: what is left, the digit that chooses, its a and b, two products, two sums,
    the result."""
    steps = max(2, min(999, target_tokens // AFFINE_STEP_TOKENS))
    while True:
        table = {d: (rng.randint(2, 9), rng.randrange(100)) for d in range(10)}
        x, y = first = rng.randrange(100), rng.randrange(100)
        seen, lines = set(), []
        for left in _countdown(steps):
            if (x, y) in seen:
                break
            seen.add((x, y))
            a, b = table[y % 10]
            low, high = a * (x % 10), a * (x // 10)
            ones = low % 10 + b % 10 + y % 10
            tens = low // 10 + high % 10 + b // 10 + y // 10 + ones // 10
            lines.append(
                f"{left} d {y % 10} a {a} b {_digits(b, 2)} "
                f": {a} * {x % 10} = {_digits(low, 2)} ; {a} * {x // 10} = {_digits(high, 2)} "
                f"; {_digits(ones, 2)} ; {_digits(tens, 2)} "
                f"> x {tens % 10} {ones % 10} y {_digits(x, 2)}"
            )
            x, y = tens % 10 * 10 + ones % 10, x
        else:
            break
    facts = [f"d {d} a {a} b {_digits(b, 2)} ;" for d, (a, b) in table.items()]
    rng.shuffle(facts)
    prompt = (
        f"affine steps {_digits(steps, 3)} ; {' '.join(facts)} "
        f"x {_digits(first[0], 2)} y {_digits(first[1], 2)} go"
    )
    answer = _digits(x, 2)
    return Problem("affine", prompt, f"{' '.join(lines)} ans {answer}", answer)


def _search(rng: random.Random, target_tokens: int) -> Problem:
    """Depth first over three choices in each group, the sums of the path to a group kept.

    11 tokens a choice, and 6 where a leaf is compared with the target: the target, how far its two
    digits are from the sum's, the verdict.
    """
    target_tokens = min(target_tokens, MAX_SEARCH_TOKENS)
    groups = GROUPS[: 4 if target_tokens < 800 else 5]
    while True:
        numbers = [[rng.randrange(100) for _ in range(3)] for _ in groups]
        leaves = list(_leaves(groups, numbers))
        totals = [total for _, total, _ in leaves]
        sizes = (
            SEARCH_CHOICE_TOKENS * line.count(";") + SEARCH_LEAF_TOKENS for line, _, _ in leaves
        )
        ends = list(itertools.accumulate(sizes))
        # The first leaf that makes the chain long enough and whose sum did not come up before.
        last = next(
            (
                n
                for n, total in enumerate(totals)
                if ends[n] >= target_tokens and total not in totals[:n]
            ),
            None,
        )
        if last is not None:
            break
    target = _digits(totals[last], 2)
    chain = " ".join(
        f"{line} {target} | {_digits(_apart(totals[last], total), 2)} {verdict}"
        for (line, total, _), verdict in zip(leaves, ["no"] * last + ["yes"])
    )
    answer = " ".join(f"{g} {c + 1}" for g, c in zip(groups, leaves[last][2], strict=True))
    facts = [
        f"{g} {' '.join(_digits(n, 2) + ' ;' for n in three)}"
        for g, three in zip(groups, numbers, strict=True)
    ]
    prompt = f"search {' '.join(facts)} = {target} go"
    return Problem("search", prompt, f"{chain} ans {answer}", answer)


def _apart(target: int, total: int) -> int:
    """Both digits' differences, modulo 10 each, as a number of two digits."""
    return (target // 10 - total // 10) % 10 * 10 + (target - total) % 10


def _leaves(
    groups: Sequence[str], numbers: list[list[int]]
) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """(what is written on the way to a leaf, its sum, its choices), depth first."""
    sums = [0] * len(groups)
    last: tuple[int, ...] = ()
    for choice in itertools.product(range(3), repeat=len(groups)):
        depth = next((i for i, (a, b) in enumerate(zip(last, choice)) if a != b), 0)
        line = []
        for place in range(depth, len(groups)):
            before = sums[place - 1] if place else 0
            number = numbers[place][choice[place]]
            sums[place] = (before + number) % 100
            line.append(
                f"{groups[place]} {choice[place] + 1} {_digits(before, 2)} + "
                f"{_digits(number, 2)} = {_digits(sums[place], 2)} ;"
            )
        last = choice
        yield " ".join(line), sums[-1], choice


_MAKERS: dict[str, Callable[[random.Random, int], Problem]] = {
    "machine": _machine,
    "affine": _affine,
    "search": _search,
}
KINDS = tuple(_MAKERS)


def draw_length(rng: random.Random, longest: int = MAX_CHAIN_TOKENS) -> int:
    """How many tokens a chain should have, at most `longest`."""
    shortest = min(MIN_CHAIN_TOKENS, longest // 2)
    return int(math.exp(rng.uniform(math.log(shortest), math.log(longest))))


def make_problem(kind: str, rng: random.Random, target_tokens: int) -> Problem:
    """A problem of a kind whose chain has about `target_tokens`."""
    return _MAKERS[kind](rng, target_tokens)


def make_problems(seed: int, count: int, longest: int = MAX_CHAIN_TOKENS) -> Iterator[Problem]:
    """`count` problems, the kinds in turn; each depends on the seed and its number only.

    Training (``research/train_reasoner.py``) draws from other seeds, so none of these were
    seen there.
    """
    for number in range(count):
        rng = random.Random(f"problem/{seed}/{number}")
        yield make_problem(KINDS[number % len(KINDS)], rng, draw_length(rng, longest))
