# SPDX-License-Identifier: Apache-2.0
"""Which row takes a slot, which overwrites, and what a whole step needs from the pool."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_tree import Node, freed
from sglang_longflow.core.contracts import KVBudget, KVRow
from sglang_longflow.core.rows import ResidentRow, Step
from sglang_longflow.core.slots import plan_step, retraction_order, slots_required
from sglang_longflow.policies import make_policy

POLICY = make_policy("streaming")


ROOT = Node(0, locks=1)


def step_requires(rows):
    return slots_required(rows, freed)


def row(tokens, kv_len, tree=0, last=ROOT, *, owned=False, must_cut=False, steps=1):
    budget = KVBudget(tokens, POLICY)
    return ResidentRow(budget, kv_len, kv_len, 0, tree, owned, must_cut, last, steps)


@pytest.mark.parametrize("kv_len", [0, 1, 19, 20, 21, 10**6])
def test_unbounded_rows_always_append(kv_len):
    for budget in (None, KVBudget(0, POLICY)):
        plain = ResidentRow(budget, kv_len)
        assert plain.step is Step.APPEND
        assert plain.new_slots == 1


@pytest.mark.parametrize(
    ("kv_len", "owned", "must_cut", "step", "new"),
    [
        (0, False, False, Step.APPEND, 1),
        (18, False, False, Step.APPEND, 1),
        (19, False, False, Step.APPEND, 1),  # fills the row
        (20, False, False, Step.OWN, 12),  # copies the tree's slots, all but its own
        (20, True, False, Step.OVERWRITE, 0),
        (20, False, True, Step.CUT, 20),  # a prompt of exactly the budget is cut
        (500, False, True, Step.CUT, 20),
    ],
)
def test_step_of_a_bounded_row(kv_len, owned, must_cut, step, new):
    it = row(20, kv_len, 0 if owned else 12, owned=owned, must_cut=must_cut)
    assert it.step is step
    assert it.new_slots == new


def test_row_without_tree_slots_becomes_owner_for_nothing():
    assert row(20, 20).step is Step.OWN
    assert row(20, 20).new_slots == 0


@pytest.mark.parametrize(("prompt", "tokens"), [(5, 20), (19, 20), (20, 20), (100, 20), (1, 2)])
def test_life_of_a_row_appends_then_owns_once_then_overwrites(prompt, tokens):
    kv_len, tree, owned = prompt, prompt, False
    must_cut = KVBudget(tokens, POLICY).must_cut(prompt)
    steps = []
    for _ in range(40):
        it = row(tokens, kv_len, tree, owned=owned, must_cut=must_cut)
        steps.append(it.step)
        if it.step is Step.APPEND:
            kv_len += 1
        else:
            kv_len, tree, owned, must_cut = tokens, 0, True, False
    appends = max(0, tokens - prompt)
    first = Step.CUT if prompt > tokens - 1 else Step.OWN
    assert steps[:appends] == [Step.APPEND] * appends
    assert steps[appends] is first
    assert set(steps[appends + 1 :]) == {Step.OVERWRITE}


def test_no_rows_require_nothing():
    assert step_requires([]) == 0


def test_appending_rows_require_one_each():
    assert step_requires([row(20, 5), row(20, 6), ResidentRow(None, 900)]) == 3


def test_full_owners_require_nothing():
    assert step_requires([row(20, 20, owned=True)] * 50) == 0


def test_sole_holder_gets_its_nodes_back_in_the_same_step():
    a = Node(7, ROOT, 1)
    b = Node(5, a, 1)
    assert step_requires([row(20, 20, 12, b)]) == 0


def test_node_that_someone_else_holds_does_not_come_back():
    a = Node(7, ROOT, 2)
    b = Node(5, a, 1)
    assert step_requires([row(20, 20, 12, b)]) == 7


@pytest.mark.parametrize(("locks", "required"), [(2, 8), (3, 16)])
def test_shared_node_comes_back_when_all_its_holders_own_in_one_step(locks, required):
    # Each of the two takes 8; the node's 8 come back once, and only if nobody else holds it.
    shared = Node(8, ROOT, locks)
    assert step_requires([row(20, 20, 8, shared), row(30, 30, 8, shared)]) == required


def test_holder_that_only_appends_keeps_the_node():
    shared = Node(8, ROOT, 2)
    assert step_requires([row(20, 20, 8, shared), row(30, 20, 8, shared)]) == 8 + 1


def test_holder_that_owned_before_is_no_holder():
    shared = Node(8, ROOT, 1)
    assert step_requires([row(20, 20, 8, shared), row(30, 30, 0, ROOT, owned=True)]) == 0


def test_cut_row_returns_its_own_prompt_slots():
    assert step_requires([row(20, 500, 0, ROOT, must_cut=True)]) == 0
    assert step_requires([row(20, 25, 10, Node(10, ROOT, 2), must_cut=True)]) == 20 - 15
    assert step_requires([row(20, 25, 10, Node(10, ROOT, 1), must_cut=True)]) == 0


def test_surplus_of_one_row_serves_the_others_but_the_total_is_never_negative():
    big_cut = row(20, 500, 0, ROOT, must_cut=True)
    assert step_requires([big_cut] + [row(20, 5)] * 480) == 0
    assert step_requires([big_cut] + [row(20, 5)] * 481) == 1


def test_cut_and_own_share_a_node_in_one_step():
    shared = Node(10, ROOT, 2)
    rows = [row(8, 12, 10, shared, must_cut=True), row(20, 20, 10, shared)]
    # Taken 8 + 10; back: the cut row's own 2, and the node's 10 once.
    assert step_requires(rows) == 18 - 2 - 10


@pytest.mark.parametrize("case", range(60))
def test_required_slots_equal_a_naive_count_over_single_slots(case):
    rng = random.Random(case)
    nodes = [ROOT]
    for _ in range(rng.randint(1, 8)):
        nodes.append(Node(rng.randint(1, 9), rng.choice(nodes)))
    rows, held = [], {}
    for _ in range(rng.randint(1, 7)):
        last = rng.choice(nodes)
        path, here = [], last
        while here is not ROOT:
            path.append(here)
            here = here.parent
        tree = sum(len(n.key) for n in path)
        own = rng.randint(0, 6)
        kind = rng.choice(["append", "own", "cut", "owned"])
        kv_len = tree + own
        if kind == "owned" or kv_len < 2:
            rows.append(row(9, 9, 0, ROOT, owned=True))
            continue
        tokens = {"append": kv_len + 1, "own": kv_len, "cut": rng.randint(2, kv_len)}[kind]
        rows.append(row(tokens, kv_len, tree, last, must_cut=kind == "cut"))
        for n in path:
            n.lock_ref += 1
            held.setdefault(n, []).append(kind)
    if rng.random() < 0.5:
        outsider = rng.choice(nodes[1:])
        outsider.lock_ref += 1
        held.setdefault(outsider, []).append("outsider")
    taken = back = 0
    for it in rows:
        if it.owned:
            continue
        if it.must_cut:
            taken += it.budget.tokens
            back += it.kv_len - it.tree_slots
        else:
            taken += 1 if it.kv_len < it.budget.tokens else it.tree_slots
    for n, kinds in held.items():
        if all(kind in ("own", "cut") for kind in kinds):
            back += len(n.key)
    assert step_requires(rows) == max(0, taken - back)


# plan_step


def managed(tokens, overwritten=0, steps=0, cut=0, *, owned=False):
    budget = KVBudget(tokens, POLICY)
    return KVRow(budget, owned, cut, overwritten, steps)


def test_a_step_of_every_kind_side_by_side():
    rows = [
        managed(20, 7, 9, owned=True),  # overwrites
        managed(20, 0, 2),  # appends, and is full then
        None,  # not ours: appends
        managed(30, 0, 3),  # overwrites for the first time, with 12 slots of the tree
        managed(10, 0, 0, cut=41),  # a prompt of 50, cut
        managed(0),  # full KV: appends
        managed(20, 0, 1),  # full with slots that are all its own
    ]
    unsettled = {
        1: row(20, 19),
        2: ResidentRow(None, 900),
        3: row(30, 30, 12),
        4: row(10, 50, 50, must_cut=True, steps=0),
        5: ResidentRow(None, 5),
        6: row(20, 20, 0),
    }
    plan = plan_step(rows, unsettled)
    assert plan.taken_slots == 1 + 1 + 12 + 10 + 1
    assert plan.appends == {1: 0, 2: 1, 5: 24}
    assert plan.moves == {3: slice(2, 14), 4: slice(14, 24)}
    assert plan.owners == {3: Step.OWN, 4: Step.CUT, 6: Step.OWN}
    assert plan.bounded == [0, 1, 3, 4, 6]
    assert plan.kv_lens == [20, 20, 901, 30, 10, 6, 20]
    assert plan.overwrite == [True, False, False, True, True, False, True]
    assert plan.fresh == [False, False, False, False, True, False, False]
    assert plan.overwritten_tokens == 3 and plan.cut_tokens == 41
    found = [(f.batch_index, f.overwrites, f.decode_steps, f.was_cut) for f in plan.full_rows]
    assert found == [(0, 8, 10, False), (1, 0, 3, False), (3, 1, 4, False), (4, 0, 1, True),
                     (6, 1, 2, False)]  # fmt: skip


def test_a_row_that_could_not_be_read_takes_a_slot_and_counts_no_step():
    plan = plan_step([managed(20, 0, 4)], {0: ResidentRow(None, 20)})
    assert plan.appends == {0: 0} and plan.kv_lens == [21]
    assert plan.bounded == [] and plan.full_rows == []


@st.composite
def batches(draw):
    """(rows, those that may still take slots): any history that a batch may have."""
    rows, unsettled = [], {}
    for i in range(draw(st.integers(0, 8))):
        tokens = draw(st.integers(2, 40))
        kind = draw(st.sampled_from(["none", "full", "owned", "unread", "bounded"]))
        steps = draw(st.integers(0, 3))
        if kind == "none" or kind == "full":
            rows.append(None if kind == "none" else managed(0))
            unsettled[i] = ResidentRow(None, draw(st.integers(1, 90)))
        elif kind == "owned":
            rows.append(managed(tokens, draw(st.integers(0, 5)), steps, owned=True))
        else:
            kv_len = draw(st.integers(1, 80))
            rows.append(managed(tokens, 0, steps))
            unsettled[i] = ResidentRow(None, kv_len)
            if kind == "bounded":
                tree = draw(st.integers(0, kv_len))
                must_cut = kv_len >= tokens and draw(st.booleans())
                unsettled[i] = row(tokens, kv_len, tree, must_cut=must_cut, steps=steps)
    return rows, unsettled


@given(batches())
def test_a_plan_hands_out_every_slot_once_and_keeps_rows_within_their_budgets(batch):
    rows, unsettled = batch
    before = [None if one is None else replace(one) for one in rows]
    plan = plan_step(rows, unsettled)
    assert rows == before, "planning changed a row"
    handed_out = [*plan.appends.values()]
    for part in plan.moves.values():
        handed_out += range(part.start, part.stop)
    assert sorted(handed_out) == list(range(plan.taken_slots))
    assert plan.taken_slots == sum(one.new_slots for one in unsettled.values())
    assert len(plan.kv_lens) == len(plan.overwrite) == len(plan.fresh) == len(rows)
    victims = {full.batch_index: full for full in plan.full_rows}
    for i, one in enumerate(rows):
        resident = unsettled.get(i)
        appends = i in plan.appends
        assert appends is not plan.overwrite[i]
        assert plan.fresh[i] is (plan.owners.get(i) is Step.CUT)
        assert (i in plan.owners) is (not appends and resident is not None)
        if appends:
            assert plan.kv_lens[i] == resident.kv_len + 1
        is_read = one is not None and not one.budget.is_full
        is_read = is_read and (resident is None or resident.budget is not None)
        assert (i in plan.bounded) is is_read
        assert (i in victims) is (is_read and plan.kv_lens[i] == one.budget.tokens)
        if is_read:
            assert plan.kv_lens[i] <= one.budget.tokens
        if i in victims:
            grown = plan.overwrite[i] and not plan.fresh[i]
            assert victims[i].overwrites == one.overwritten_tokens + grown
            assert victims[i].decode_steps == one.decode_steps + 1


@pytest.mark.parametrize(
    ("order", "bounded", "expected"),
    [
        ([], [], []),
        ([2, 0, 1], [False, False, False], [2, 0, 1]),
        ([2, 0, 1], [True, True, True], [2, 0, 1]),
        ([3, 1, 0, 2], [True, False, True, False], [0, 2, 3, 1]),
    ],
)
def test_retraction_takes_unbounded_rows_first_and_keeps_the_order(order, bounded, expected):
    assert retraction_order(order, bounded) == expected


def test_retraction_order_is_a_stable_partition():
    rng = random.Random(0)
    for _ in range(50):
        n = rng.randint(0, 20)
        order = rng.sample(range(n), n)
        bounded = [rng.random() < 0.5 for _ in range(n)]
        got = retraction_order(order, bounded)
        assert sorted(got) == sorted(order)
        assert got == sorted(order, key=lambda i: not bounded[i])  # sorted() is stable
