# SPDX-License-Identifier: Apache-2.0
"""Slots are counted so that a batch of budgeted rows never waits for one."""

import random
from collections import Counter

import pytest

from node_tree import Node, freed, path_to_root
from pool_simulation import budget
from sglang_longflow.core.admission import (
    admission_need,
    peak_slots,
    reserve_for,
)
from sglang_longflow.core.rows import ResidentRow

ROOT = Node(0, locks=1)


def node(length, parent=ROOT, locks=0):
    return Node(length, parent, locks)


def needs(rows):
    return reserve_for(rows, freed)


def row(tokens, total, allocated, tree, last, *, owned=False, must_cut=False):
    return ResidentRow(budget(tokens), allocated, allocated, total, tree, owned, must_cut, last)


# peak_slots


@pytest.mark.parametrize(
    ("tokens", "prompt", "new", "peak"),
    [
        (100, 10, 20, 30),  # never reaches the budget
        (100, 10, 90, 100),  # ends exactly at it
        (100, 10, 91, 100),
        (100, 10, 10**6, 100),
        (100, 99, 10**6, 100),  # longest prompt that is not cut
        (100, 100, 10**6, 100),
        (100, 101, 1, 101),  # the whole prompt is resident in prefill
        (100, 5000, 10**6, 5000),
        (0, 10, 90, 100),  # full KV
        (0, 500, 5000, 5500),
        (100, 0, 0, 1),
        (100, 40, 0, 41),  # overlap launches a decode step of it all the same
        (100, 99, 0, 100),
        (100, 100, 0, 100),
    ],
)
def test_peak_is_the_prompt_or_the_budget_whichever_is_more(tokens, prompt, new, peak):
    assert peak_slots(budget(tokens), prompt, new) == peak


@pytest.mark.parametrize("tokens", [0, 2, 7, 64])
def test_peak_never_falls_when_anything_grows(tokens):
    for prompt in range(0, 130, 3):
        for new in range(0, 130, 3):
            here = peak_slots(budget(tokens), prompt, new)
            assert prompt <= here <= prompt + max(1, new)
            assert here <= peak_slots(budget(tokens), prompt + 1, new)
            assert here <= peak_slots(budget(tokens), prompt, new + 1)


# reserve_for


def test_no_rows_reserve_nothing():
    assert sum(needs([])) == 0


def test_owned_row_reserves_nothing_even_with_a_locked_path():
    last = node(10, locks=1)
    reserve = needs([row(20, 1000, 20, 0, last, owned=True)])
    assert reserve == [0]


def test_row_that_never_fills_reserves_the_rest_of_its_length():
    last = node(10, locks=1)
    reserve = needs([row(20, 20, 13, 10, last)])  # 20 == budget: it appends to the end
    assert reserve == [7]


def test_row_one_token_longer_than_its_budget_will_own():
    last = node(10, locks=1)
    # Ends with 20 slots of its own: it has 3, and the 10 of its node come back to it.
    assert needs([row(20, 21, 13, 10, last)]) == [20 - 3 - 10]


def test_lone_row_is_credited_its_whole_path_once():
    a = node(6, locks=1)
    b = node(4, a, locks=1)
    reserve = needs([row(20, 100, 13, 10, b)])
    assert reserve == [7]


def test_two_rows_that_share_a_prefix_credit_it_once():
    shared = node(8, locks=2)
    left = node(3, shared, locks=1)
    right = node(5, shared, locks=1)
    rows = [row(20, 100, 11, 11, left), row(30, 100, 13, 13, right)]
    reserve = needs(rows)
    assert sum(reserve) == 20 + 30 - 8 - 3 - 5
    assert reserve == [20 - 3, 30 - 5 - 8]  # the last to let go is credited


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_total_does_not_depend_on_who_is_credited(order):
    shared = node(8, locks=2)
    left = node(3, shared, locks=1)
    right = node(5, shared, locks=1)
    rows = [row(20, 100, 11, 11, left), row(30, 100, 13, 13, right)]
    assert sum(needs([rows[i] for i in order])) == 34


def test_node_that_an_outsider_locks_is_credited_to_nobody():
    shared = node(8, locks=3)  # two rows and somebody else
    left = node(3, shared, locks=1)
    reserve = needs([row(20, 100, 11, 11, left), row(20, 100, 8, 8, shared)])
    assert sum(reserve) == (20 - 3) + 20


def test_node_that_a_keeping_row_locks_is_credited_to_nobody():
    shared = node(8, locks=2)
    keeps = row(50, 40, 10, 8, shared)
    owns = row(20, 100, 10, 8, shared)
    reserve = needs([owns, keeps])
    assert reserve == [18, 30]


def test_credit_never_makes_a_reserve_negative():
    # A prompt of 500 that is cut to 20: its node alone is more than all it may still take.
    last = node(500, locks=1)
    assert needs([row(20, 1000, 500, 500, last, must_cut=True)]) == [0]


def test_row_to_be_cut_needs_nothing_when_its_own_slots_cover_the_budget():
    assert needs([row(20, 1000, 500, 100, node(100, locks=2), must_cut=True)]) == [0]


def test_row_to_be_cut_reserves_for_what_others_hold():
    # 490 of 500 prompt tokens are in a node that an outsider keeps: 10 own slots for 20.
    last = node(490, locks=2)
    assert needs([row(20, 1000, 500, 490, last, must_cut=True)]) == [10]


def test_row_to_be_cut_will_own_even_if_its_total_is_within_the_budget():
    # Prompt 20 with budget 20 must be cut (over budget - 1) though nothing is ever overwritten.
    last = node(20, locks=2)
    assert needs([row(20, 20, 20, 20, last, must_cut=True)]) == [20]


def test_without_a_tree_rows_reserve_up_to_the_budget():
    rows = [row(20, 100, 13, 0, None), row(20, 15, 13, 0, None), row(20, 100, 20, 0, None)]
    assert needs(rows) == [7, 2, 0]


def test_reserve_accepts_a_generator():
    rows = [row(20, 100, 13, 0, None), row(20, 100, 10, 0, None)]
    assert needs(r for r in rows) == [7, 10]


@pytest.mark.parametrize("case", range(60))
def test_reserve_is_never_negative_and_credits_no_token_twice(case):
    rng = random.Random(case)
    nodes = [ROOT]
    for _ in range(rng.randint(1, 12)):
        nodes.append(node(rng.randint(1, 30), rng.choice(nodes)))
    rows = []
    for _ in range(rng.randint(1, 8)):
        last = rng.choice(nodes)
        tree = sum(len(n.key) for n in path_to_root(last))
        allocated = tree + rng.randint(0, 30)
        for held in path_to_root(last):
            held.lock_ref += 1
        tokens = rng.randint(2, 120)
        must_cut = allocated > tokens - 1
        rows.append(row(tokens, rng.randint(allocated, 300), allocated, tree, last,
                        must_cut=must_cut))  # fmt: skip
    for outsider in rng.sample(nodes[1:], k=min(3, len(nodes) - 1)):
        outsider.lock_ref += rng.randint(0, 1)
    reserve = needs(rows)
    assert min(reserve) >= 0
    lockers = Counter(id(n) for r in rows if r.will_own for n in path_to_root(r.lock))
    # Naive: all future needs without any credit, less each creditable token at most once.
    gross = sum(
        max(0, r.budget.tokens - (r.allocated_slots - r.tree_slots))
        if r.will_own
        else max(0, r.total_tokens - r.allocated_slots)
        for r in rows
    )
    creditable = sum(len(n.key) for n in nodes[1:] if lockers[id(n)] == n.lock_ref > 0)
    assert gross - creditable <= sum(reserve) <= gross


# admission_need


@pytest.mark.parametrize(
    ("tokens", "prompt", "total", "hit", "own", "credited", "need"),
    [
        (50, 10, 40, 0, 0, 0, 40),  # keeps: its whole length
        (50, 10, 50, 8, 8, 0, 42),  # keeps to the end: the hit stays shared
        (50, 10, 51, 8, 8, 0, 42),  # one more: it will own, and its own hit comes back
        (50, 10, 51, 8, 0, 0, 50),  # the hit stays with others: copied
        (50, 10, 51, 8, 3, 0, 47),
        (50, 10, 40, 8, 0, 8, 40),  # keeps what owners were credited: they copy it after all
        (50, 49, 1000, 0, 0, 0, 50),
        (50, 50, 1000, 0, 0, 0, 50),  # cut
        (50, 500, 1000, 0, 0, 0, 500),  # the prompt is the peak
        (50, 500, 1000, 480, 480, 0, 20),
        (50, 500, 1000, 480, 0, 0, 50),
        (50, 50, 50, 0, 0, 0, 50),  # cut although nothing is overwritten
    ],
)
def test_need_by_hand(tokens, prompt, total, hit, own, credited, need):
    assert admission_need(budget(tokens), prompt, total, hit, own, credited) == need


@pytest.mark.parametrize("case", range(40))
def test_need_covers_prefill_and_with_the_hit_never_exceeds_the_peak(case):
    rng = random.Random(case)
    tokens, prompt = rng.randint(2, 200), rng.randint(1, 300)
    new = rng.randint(1, 300)
    hit = rng.randint(0, prompt - 1)
    own = rng.randint(0, hit)
    need = admission_need(budget(tokens), prompt, prompt + new, hit, own, 0)
    assert need >= prompt - hit
    peak = peak_slots(budget(tokens), prompt, new)
    # Alone, everything it hits is its own: what check_fits accepted is admitted to an empty pool.
    assert admission_need(budget(tokens), prompt, prompt + new, hit, hit, 0) + hit <= peak
    assert need <= peak
