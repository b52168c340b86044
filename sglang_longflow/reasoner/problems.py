"""Problems with long chains of steps: a prompt with few facts, and the chain that follows.

Every step reads facts of the prompt, or results far behind, and most of what it writes is of no
use later: what a KV cache should keep is little, and only use shows which. Three kinds:

- ``machine``: a program of up to 12 instructions jumps about and adds into 6 cells. A step needs
  its instruction (in the prompt) and the last value of two cells (anywhere before).
- ``affine``: ``x, y <- (a x + b + y) mod 100, x`` in written arithmetic, where ``a`` and ``b`` are
  looked up in the prompt by the last digit of ``y``.
- ``search``: choose one of three numbers in each of five groups so that they add up to a target,
  depth first. A step back needs the choice and the partial sum of a group visited long before.

All words are tokens of `vocabulary`. A chain ends with ``ans`` and the answer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sglang_longflow.reasoner.vocabulary import CELLS, GROUPS, NODES

#: Lengths of chains are spread evenly in their logarithm between these.
MIN_CHAIN_TOKENS, MAX_CHAIN_TOKENS = 350, 4600
MAX_SEARCH_TOKENS = 3300  # all 243 leaves of five groups take more


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
    """What follows the last ``ans`` of a chain; None where there is none."""
    _, found, answer = f" {chain} ".rpartition(" ans ")
    return " ".join(answer.split()) if found else None


def _digits(number: int, width: int) -> str:
    return " ".join(f"{number:0{width}d}")


def _machine(rng: random.Random, target_tokens: int) -> Problem:
    """14 tokens a step: count, node, cell and value twice, constant, result, next node."""
    steps = max(2, min(999, target_tokens // 14))
    nodes = NODES[: rng.randint(8, len(NODES))]
    cells = CELLS[: rng.randint(4, len(CELLS))]
    program = {
        node: (*rng.sample(cells, 2), rng.randrange(10), rng.choice(nodes), rng.choice(nodes))
        for node in nodes
    }
    values = {cell: rng.randrange(10) for cell in cells}
    facts = [f"{n} : {c} {s} {k} {e} {o} ;" for n, (c, s, k, e, o) in program.items()]
    rng.shuffle(facts)
    start = " ".join(f"{cell} {value} ;" for cell, value in values.items())
    prompt = f"machine stop {_digits(steps, 3)} ; {' '.join(facts)} {start} > {nodes[0]} go"
    lines, node = [], nodes[0]
    for step in range(1, steps + 1):
        cell, source, constant, even, odd = program[node]
        before = values[cell]
        values[cell] = (before + values[source] + constant) % 10
        following = odd if values[cell] % 2 else even
        lines.append(
            f"{_digits(step, 3)} {node} {cell} {before} {source} {values[source]} {constant} "
            f"= {cell} {values[cell]} > {following}"
        )
        node = following
    answer = " ".join(f"{cell} {value}" for cell, value in values.items())
    return Problem("machine", prompt, f"{' '.join(lines)} ans {answer}", answer)


def _affine(rng: random.Random, target_tokens: int) -> Problem:
    """37 tokens a step: the digit that chooses, its a and b, two products, two sums, the result."""
    steps = max(2, min(999, target_tokens // 37))
    table = {d: (rng.randint(2, 9), rng.randrange(100)) for d in range(10)}
    facts = [f"d {d} a {a} b {_digits(b, 2)} ;" for d, (a, b) in table.items()]
    rng.shuffle(facts)
    x, y = rng.randrange(100), rng.randrange(100)
    prompt = (
        f"affine stop {_digits(steps, 3)} ; {' '.join(facts)} "
        f"x {_digits(x, 2)} y {_digits(y, 2)} go"
    )
    lines = []
    for step in range(1, steps + 1):
        a, b = table[y % 10]
        low, high = a * (x % 10), a * (x // 10)
        ones = low % 10 + b % 10 + y % 10
        tens = low // 10 + high % 10 + b // 10 + y // 10 + ones // 10
        lines.append(
            f"{_digits(step, 3)} d {y % 10} a {a} b {_digits(b, 2)} "
            f": {a} * {x % 10} = {_digits(low, 2)} ; {a} * {x // 10} = {_digits(high, 2)} "
            f"; {_digits(ones, 2)} ; {_digits(tens, 2)} "
            f"> x {tens % 10} {ones % 10} y {_digits(x, 2)}"
        )
        x, y = tens % 10 * 10 + ones % 10, x
    answer = _digits(x, 2)
    return Problem("affine", prompt, f"{' '.join(lines)} ans {answer}", answer)


def _search(rng: random.Random, target_tokens: int) -> Problem:
    """Depth first over three choices in each group, the sums of the path to a group kept."""
    target_tokens = min(target_tokens, MAX_SEARCH_TOKENS)
    groups = GROUPS[: 4 if target_tokens < 700 else 5]
    numbers = {g: [rng.randrange(100) for _ in range(3)] for g in groups}
    facts = [f"{g} {' '.join(_digits(n, 2) + ' ;' for n in numbers[g])}" for g in groups]
    leaves: list[tuple[int, ...]] = []
    tokens, lines, sums = 0, [], {}
    choice = [0] * len(groups)
    depth = 0
    seen: set[int] = set()
    while True:
        line = []
        for place in range(depth, len(groups)):
            group = groups[place]
            number = numbers[group][choice[place]]
            before = sums[place - 1] if place else 0
            sums[place] = (before + number) % 100
            line.append(
                f"{group} {choice[place] + 1} {_digits(before, 2)} + {_digits(number, 2)} "
                f"= {_digits(sums[place], 2)} ;"
            )
        lines.append(" ".join(line))
        tokens += 11 * len(line)
        leaves.append(tuple(c + 1 for c in choice))
        total = sums[len(groups) - 1]
        if tokens >= target_tokens and total not in seen:
            break
        seen.add(total)
        depth = len(groups) - 1
        while depth >= 0 and choice[depth] == 2:
            choice[depth] = 0
            depth -= 1
        if depth < 0:  # every sum came up before: other numbers
            return _search(rng, target_tokens)
        choice[depth] += 1
    answer = " ".join(f"{g} {c}" for g, c in zip(groups, leaves[-1], strict=True))
    prompt = f"search {' '.join(facts)} = {_digits(total, 2)} go"
    return Problem("search", prompt, f"{' '.join(lines)} ans {answer}", answer)


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

    Training (``scripts/train_reasoner.py``) draws from seeds of its own, so none of these were
    seen there.
    """
    for number in range(count):
        rng = random.Random(f"problem/{seed}/{number}")
        yield make_problem(KINDS[number % len(KINDS)], rng, draw_length(rng, longest))
