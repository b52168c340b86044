"""Slots are counted so that a batch of budgeted rows never waits for one.

The second half is a simulation: pool and radix tree as plain Python sets and lists, driven by the
accounting functions in the order in which SGLang's scheduler (with overlap) and our hooks call
them. Its claim is that a budgeted batch never needs retraction.
"""

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from sglang_longflow.contracts import KVBudget
from sglang_longflow.errors import BudgetError
from sglang_longflow.flow.admission import (
    LiveRow,
    admission_need,
    path_to_root,
    peak_slots,
    reserve_for,
)
from sglang_longflow.flow.prompt import chunk_end, max_prefix_tokens
from sglang_longflow.flow.request import check_fits
from sglang_longflow.flow.slots import DecodeRow, Step, slots_required
from sglang_longflow.policies import make_policy

STREAMING = make_policy("streaming")
LONGFLOW = make_policy("longflow")


def budget(tokens, policy=STREAMING):
    return KVBudget(tokens, policy)


@dataclass(eq=False)
class Node:
    """What the accounting reads of a radix tree node."""

    key: list
    parent: "Node | None"
    lock_ref: int = 0


ROOT = Node([], None, 1)


def node(length, parent=ROOT, locks=0):
    return Node([0] * length, parent, locks)


def row(tokens, total, allocated, tree, last, *, owned=False, must_cut=False):
    return LiveRow(budget(tokens), total, allocated, tree, owned, must_cut, last)


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
        (100, 0, 0, 0),
    ],
)
def test_peak_is_the_prompt_or_the_budget_whichever_is_more(tokens, prompt, new, peak):
    assert peak_slots(budget(tokens), prompt, new) == peak


@pytest.mark.parametrize("tokens", [0, 2, 7, 64])
def test_peak_never_falls_when_anything_grows(tokens):
    for prompt in range(0, 130, 3):
        for new in range(0, 130, 3):
            here = peak_slots(budget(tokens), prompt, new)
            assert prompt <= here <= prompt + new
            assert here <= peak_slots(budget(tokens), prompt + 1, new)
            assert here <= peak_slots(budget(tokens), prompt, new + 1)


# path_to_root


def test_path_has_no_root_and_runs_upwards():
    a = node(3)
    b = node(4, a)
    assert list(path_to_root(b)) == [b, a]
    assert list(path_to_root(ROOT)) == []
    assert list(path_to_root(None)) == []


# reserve_for


def test_no_rows_reserve_nothing():
    assert reserve_for([]).total_slots == 0
    assert reserve_for([]).credited == frozenset()


def test_owned_row_reserves_nothing_even_with_a_locked_path():
    last = node(10, locks=1)
    reserve = reserve_for([row(20, 1000, 20, 0, last, owned=True)])
    assert reserve.per_row == [0]
    assert reserve.credited == frozenset()


def test_row_that_never_fills_reserves_the_rest_of_its_length():
    last = node(10, locks=1)
    reserve = reserve_for([row(20, 20, 13, 10, last)])  # 20 == budget: it appends to the end
    assert reserve.per_row == [7]
    assert reserve.credited == frozenset()


def test_row_one_token_longer_than_its_budget_will_own():
    last = node(10, locks=1)
    # Ends with 20 slots of its own: it has 3, and the 10 of its node come back to it.
    assert reserve_for([row(20, 21, 13, 10, last)]).per_row == [20 - 3 - 10]


def test_lone_row_is_credited_its_whole_path_once():
    a = node(6, locks=1)
    b = node(4, a, locks=1)
    reserve = reserve_for([row(20, 100, 13, 10, b)])
    assert reserve.per_row == [7]
    assert reserve.credited == {id(a), id(b)}


def test_two_rows_that_share_a_prefix_credit_it_once():
    shared = node(8, locks=2)
    left = node(3, shared, locks=1)
    right = node(5, shared, locks=1)
    rows = [row(20, 100, 11, 11, left), row(30, 100, 13, 13, right)]
    reserve = reserve_for(rows)
    assert reserve.total_slots == 20 + 30 - 8 - 3 - 5
    assert reserve.per_row == [20 - 11, 30 - 5]
    assert reserve.credited == {id(shared), id(left), id(right)}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_total_does_not_depend_on_who_is_credited(order):
    shared = node(8, locks=2)
    left = node(3, shared, locks=1)
    right = node(5, shared, locks=1)
    rows = [row(20, 100, 11, 11, left), row(30, 100, 13, 13, right)]
    assert reserve_for([rows[i] for i in order]).total_slots == 34


def test_node_that_an_outsider_locks_is_credited_to_nobody():
    shared = node(8, locks=3)  # two rows and somebody else
    left = node(3, shared, locks=1)
    reserve = reserve_for([row(20, 100, 11, 11, left), row(20, 100, 8, 8, shared)])
    assert reserve.total_slots == (20 - 3) + 20
    assert id(shared) not in reserve.credited


def test_node_that_a_keeping_row_locks_is_credited_to_nobody():
    shared = node(8, locks=2)
    keeps = row(50, 40, 10, 8, shared)
    owns = row(20, 100, 10, 8, shared)
    reserve = reserve_for([owns, keeps])
    assert reserve.per_row == [18, 30]
    assert reserve.credited == frozenset()


def test_credit_never_makes_a_reserve_negative():
    # A prompt of 500 that is cut to 20: its node alone is more than all it may still take.
    last = node(500, locks=1)
    assert reserve_for([row(20, 1000, 500, 500, last, must_cut=True)]).per_row == [0]


def test_row_to_be_cut_needs_nothing_when_its_own_slots_cover_the_budget():
    assert reserve_for([row(20, 1000, 500, 100, node(100, locks=2), must_cut=True)]).per_row == [0]


def test_row_to_be_cut_reserves_for_what_others_hold():
    # 490 of 500 prompt tokens are in a node that an outsider keeps: 10 own slots for 20.
    last = node(490, locks=2)
    assert reserve_for([row(20, 1000, 500, 490, last, must_cut=True)]).per_row == [10]


def test_row_to_be_cut_will_own_even_if_its_total_is_within_the_budget():
    # Prompt 20 with budget 20 must be cut (over budget - 1) though nothing is ever overwritten.
    last = node(20, locks=2)
    assert reserve_for([row(20, 20, 20, 20, last, must_cut=True)]).per_row == [20]


def test_without_a_tree_rows_reserve_up_to_the_budget():
    rows = [row(20, 100, 13, 0, None), row(20, 15, 13, 0, None), row(20, 100, 20, 0, None)]
    assert reserve_for(rows).per_row == [7, 2, 0]


def test_reserve_accepts_a_generator():
    rows = [row(20, 100, 13, 0, None), row(20, 100, 10, 0, None)]
    assert reserve_for(r for r in rows).per_row == [7, 10]


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
    reserve = reserve_for(rows)
    assert min(reserve.per_row) >= 0
    by_id = {id(n): n for n in nodes}
    lockers = Counter(id(n) for r in rows if r.will_own for n in path_to_root(r.last_node))
    assert all(lockers[i] == by_id[i].lock_ref for i in reserve.credited)
    # Naive: all future needs without any credit, less each creditable token at most once.
    gross = sum(
        max(0, r.budget.tokens - (r.allocated_slots - r.tree_slots))
        if r.will_own
        else max(0, r.total_tokens - r.allocated_slots)
        for r in rows
    )
    creditable = sum(len(n.key) for n in nodes[1:] if lockers[id(n)] == n.lock_ref > 0)
    assert gross - creditable <= reserve.total_slots <= gross


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


# The simulation


class TreeNode:
    """A radix tree node over token ids, with the slots that hold their K/V."""

    def __init__(self, key, value, parent):
        self.key, self.value, self.parent = key, value, parent
        self.children = {}
        self.lock_ref = 0
        self.used = 0


class Tree:
    """SGLang's RadixCache with page size 1, without torch."""

    def __init__(self, free):
        self.root = TreeNode([], [], None)
        self.root.lock_ref = 1
        self.free = free
        self.clock = 0

    def nodes(self):
        stack = list(self.root.children.values())
        while stack:
            here = stack.pop()
            stack.extend(here.children.values())
            yield here

    def _split(self, child, length):
        front = TreeNode(child.key[:length], child.value[:length], child.parent)
        front.lock_ref, front.used = child.lock_ref, child.used
        front.parent.children[front.key[0]] = front
        child.key, child.value, child.parent = child.key[length:], child.value[length:], front
        front.children = {child.key[0]: child}
        return front

    def match(self, tokens):
        """(slots, last node) of the longest prefix; splits a node that matches in part."""
        self.clock += 1
        here, slots, done = self.root, [], 0
        while done < len(tokens) and tokens[done] in here.children:
            child = here.children[tokens[done]]
            child.used = self.clock
            same = 0
            for mine, theirs in zip(child.key, tokens[done:]):
                if mine != theirs:
                    break
                same += 1
            if same < len(child.key):
                child = self._split(child, same)
                slots += child.value
                return slots, child
            slots += child.value
            here, done = child, done + same
        return slots, here

    def insert(self, tokens, slots):
        """Returns how many tokens were there already; the tree owns the others' slots now."""
        found, here = self.match(tokens)
        if len(found) < len(tokens):
            new = TreeNode(tokens[len(found) :], slots[len(found) :], here)
            new.used = self.clock
            here.children[new.key[0]] = new
        return len(found)

    def lock(self, last, change):
        while last is not self.root:
            last.lock_ref += change
            assert last.lock_ref >= 0
            last = last.parent

    def evictable(self):
        return sum(len(n.key) for n in self.nodes() if n.lock_ref == 0)

    def protected(self):
        return sum(len(n.key) for n in self.nodes() if n.lock_ref > 0)

    def evict(self, count):
        while count > 0:
            leaves = [n for n in self.nodes() if not n.children and n.lock_ref == 0]
            if not leaves:
                return
            oldest = min(leaves, key=lambda n: n.used)
            self.free.update(oldest.value)
            count -= len(oldest.value)
            del oldest.parent.children[oldest.key[0]]


@dataclass(eq=False)
class Request:
    """A request of the simulation; slot names as in `hooks.slots`."""

    prompt: list
    max_new: int
    ends_after: int  # output tokens, <= max_new
    budget: KVBudget
    slots: list = field(default_factory=list)
    tree_slots: int = 0
    last_node: object = None
    start: int = 0  # tokens that were computed or hit before this chunk
    end: int = 0
    owned: bool = False
    must_cut: bool = False
    overwrote: bool = False
    outputs: int = 0
    finished: bool = False

    @property
    def total(self):
        return len(self.prompt) + self.max_new

    @property
    def window(self):
        cut = self.budget.must_cut(len(self.prompt))
        return self.budget.policy.prompt_window_tokens if cut else 0

    def live_row(self):
        return LiveRow(self.budget, self.total, len(self.slots), self.tree_slots, self.owned,
                       self.must_cut, self.last_node)  # fmt: skip

    def decode_row(self):
        return DecodeRow(self.budget, len(self.slots), self.tree_slots, self.owned, self.must_cut,
                         self.last_node)  # fmt: skip

    def tokens(self):
        """Token ids of its slots; output tokens are its own (never shared)."""
        generated = [(id(self), i) for i in range(len(self.slots) - len(self.prompt))]
        return (self.prompt + generated)[: len(self.slots)]


class Simulation:
    """One scheduler with overlap: a batch's result is seen after the next batch was launched.

    Three rules that the hooks must follow can be switched off, to show that the simulation notices.

    Attributes
    ----------
    held_hits : bool
        A request that keeps its hit reserves all of it that anyone else holds, not only the nodes
        that were credited when the pass began (those may be split or newly locked meanwhile).
    close_chunk : bool
        No request joins a chunk that was shortened for the window: one chunked request at a time.
    end_by_length : bool
        A chunk that was run to the end of its prompt is the last one, whatever SGLang's limit said.
    """

    held_hits = True
    close_chunk = True
    end_by_length = True

    def __init__(self, pool_tokens, *, chunk=None, radix=True):
        self.total = pool_tokens
        self.free = set(range(1, pool_tokens + 1))
        self.tree = Tree(self.free)
        self.chunk, self.radix = chunk, radix
        self.waiting, self.running = [], []
        self.chunked = None
        self.last = None  # (kind, requests) that was launched last and not processed yet
        self.fresh = []  # prefilled in the last batch, not merged into `running` yet
        self.done = 0
        self.peak_running = 0
        self.counts = Counter()

    # pool

    def room(self):
        return len(self.free) + (self.tree.evictable() if self.radix else 0)

    def take(self, count):
        if count > len(self.free):
            self.tree.evict(count - len(self.free))
        assert count <= len(self.free), f"allocation of {count} failed: retraction or crash"
        return [self.free.pop() for _ in range(count)]

    def check(self):
        holders = [r for r in self.holders() if r.slots]
        own = [s for r in holders for s in r.slots[r.tree_slots :]]
        in_tree = [s for n in self.tree.nodes() for s in n.value]
        everything = sorted([*self.free, *own, *in_tree])
        assert everything == list(range(1, self.total + 1)), "a slot leaked or has two owners"
        parts = len(self.free) + self.tree.evictable() + len(own) + self.tree.protected()
        assert parts == self.total
        locks = Counter(n for r in holders for n in path_to_root(r.last_node))
        assert all(locks[n] == n.lock_ref for n in self.tree.nodes())
        # A locked node's slots are those that its lockers' rows name.
        for r in holders:
            path = [s for n in reversed(list(path_to_root(r.last_node))) for s in n.value]
            assert r.slots[: r.tree_slots] == path

    def holders(self):
        return self.running + self.fresh + ([self.chunked] if self.chunked else [])

    # tree, as RadixCache.cache_unfinished_req and cache_finished_req do it

    def cache_unfinished(self, r):
        if not self.radix:
            return
        tokens = r.prompt[: r.end]
        known = self.tree.insert(tokens, r.slots[: r.end])
        self.free.update(r.slots[r.tree_slots : known])
        slots, last = self.tree.match(tokens)
        r.slots[: r.end] = slots
        r.tree_slots = len(slots)
        self.tree.lock(r.last_node, -1)
        self.tree.lock(last, +1)
        r.last_node = last

    def release(self, r):
        if not self.radix or r.owned:
            self.free.update(r.slots[r.tree_slots :])
        else:
            known = self.tree.insert(r.tokens(), r.slots)
            self.free.update(r.slots[r.tree_slots : known])
        self.tree.lock(r.last_node, -1)
        r.finished, r.slots = True, []
        self.done += 1

    # scheduling

    def need(self, r, reserve, *, lock_held):
        """`hooks.admission._need`."""
        mine = 1 if lock_held else 0
        own_hit = given_back = 0
        for n in path_to_root(r.last_node):
            if n.lock_ref == mine:
                own_hit += len(n.key)
            if id(n) in reserve.credited or (
                self.held_hits and not lock_held and n.lock_ref > mine
            ):
                given_back += len(n.key)
        return admission_need(r.budget, len(r.prompt), r.total, r.start, own_hit, given_back)

    def prefill_pass(self):
        """`PrefillAdder` with the hooks of `hooks.admission`; returns the requests to prefill."""
        reserve = reserve_for([r.live_row() for r in self.running if not r.finished])
        offset = reserve.total_slots
        chosen, left_in_chunk = [], self.chunk
        if self.chunked is not None:
            r = self.chunked
            r.start = r.end
            remaining = self.room() - offset
            limit = min(self.chunk, remaining) if remaining > 0 else self.chunk
            need = self.need(r, reserve, lock_held=True)
            truncated = len(r.prompt) - r.start > limit
            end = min(len(r.prompt), r.start + limit)
            r.end = chunk_end(r.start, end, len(r.prompt), r.window)
            assert r.end > r.start, "an empty chunk"
            if not self.end_by_length:
                assert truncated == (r.end < len(r.prompt)), "SGLang expects one more chunk"
            chosen.append(r)
            offset += need
            left_in_chunk -= r.end - r.start
            if self.close_chunk and r.end < len(r.prompt):
                left_in_chunk = 0
            self.counts["chunks"] += 1
        still_chunked = self.chunked is not None and self.chunked.end < len(self.chunked.prompt)
        while self.waiting:
            r = self.waiting[0]
            prompt = len(r.prompt)
            limit = max_prefix_tokens(prompt - 1, prompt, r.window)
            hit, node_hit = self.tree.match(r.prompt[:limit])
            r.start, r.last_node = len(hit), node_hit
            left = prompt - r.start
            if left_in_chunk is not None and left_in_chunk < min(left, r.window):
                break
            need = self.need(r, reserve, lock_held=False)
            self.tree.lock(node_hit, +1)
            fits = need <= self.room() - offset and left + 1 < self.room() - offset
            if not fits or (left_in_chunk is not None and left_in_chunk <= 0):
                self.tree.lock(node_hit, -1)
                break
            if left_in_chunk is not None and left > left_in_chunk:
                assert not still_chunked, "two chunked requests: SGLang's scheduler asserts"
                still_chunked = True
                r.end = chunk_end(r.start, r.start + left_in_chunk, prompt, r.window)
                assert r.start < r.end < prompt
            else:
                r.end = prompt
            if left_in_chunk is not None:
                left_in_chunk -= min(left, left_in_chunk)
            r.slots, r.tree_slots = list(hit), len(hit)
            offset += need
            chosen.append(self.waiting.pop(0))
            self.counts["hit"] += bool(hit)
            if self.room() - offset <= 0:
                break
        return chosen

    def launch_prefill(self, chosen):
        taken = self.take(sum(r.end - r.start for r in chosen))
        self.chunked = None
        for r in chosen:
            count = r.end - r.start
            r.slots, taken = r.slots[: r.start] + taken[:count], taken[count:]
            if r.end < len(r.prompt):
                assert self.chunked is None
                self.chunked = r
            else:
                r.must_cut = r.budget.must_cut(len(r.prompt)) and r.max_new > 0
                self.fresh.append(r)

    def launch_decode(self):
        rows = self.running
        required = slots_required([r.decode_row() for r in rows])
        assert required <= self.room(), "the decode memory check asks for retraction"
        for r in rows:  # `hooks.slots._insert_prompts`
            if r.decode_row().step is Step.CUT:
                self.cache_unfinished(r)
        plans = [r.decode_row() for r in rows]
        again = slots_required(plans)
        assert again <= self.room()
        steps = [p.step for p in plans]
        before = self.room()
        for r, step in zip(rows, steps):  # `_give_back`
            if step in (Step.OWN, Step.CUT):
                self.tree.lock(r.last_node, -1)
                if step is Step.CUT:
                    self.free.update(r.slots[r.tree_slots :])
                r.last_node = self.tree.root
        taken = self.take(sum(p.new_slots for p in plans))
        assert before - self.room() <= again, "the step took more than it said"
        for r, plan, step in zip(rows, plans, steps):
            mine, taken = taken[: plan.new_slots], taken[plan.new_slots :]
            self.counts[step] += 1
            if step is Step.APPEND:
                r.slots += mine
            elif step is Step.OVERWRITE:
                assert r.owned and len(r.slots) == r.budget.tokens
            else:
                kept = [] if step is Step.CUT else r.slots[r.tree_slots :]
                r.slots, r.tree_slots = mine + kept, 0
                r.owned, r.must_cut = True, False
                assert len(r.slots) == r.budget.tokens
            assert len(r.slots) <= r.budget.tokens

    def process(self, batch):
        """The result of a batch, one launch later."""
        if batch is None:
            return
        kind, members = batch
        for r in members:
            if r.finished:
                continue  # overlap: the step beyond its end
            if kind == "prefill" and r.end < len(r.prompt):
                continue
            r.outputs += 1
            if r.outputs >= r.ends_after:
                self.release(r)
            elif kind == "prefill" and not r.owned:
                self.cache_unfinished(r)

    def step(self):
        if self.chunked is not None:  # stash_chunked_request
            self.cache_unfinished(self.chunked)
        self.running = [r for r in self.running if not r.finished]
        self.running += [r for r in self.fresh if not r.finished]
        self.fresh = []
        chosen = self.prefill_pass() if self.waiting or self.chunked else []
        if chosen:
            self.launch_prefill(chosen)
            batch = ("prefill", [r for r in chosen if r.end == len(r.prompt)])
        elif self.running:
            self.launch_decode()
            batch = ("decode", list(self.running))
        else:
            batch = None
        self.peak_running = max(self.peak_running, len(self.running))
        self.process(self.last)
        self.last = batch
        self.running = [r for r in self.running if not r.finished]
        self.fresh = [r for r in self.fresh if not r.finished]
        self.check()
        return batch is not None


def make_request(rng, pool_tokens, families, scale, policies, keeps):
    """A random request that check_fits and SGLang's input length limit accept, or None."""
    family = rng.choice(families)
    shared = family[: rng.choice([0, len(family), rng.randint(0, len(family))])]
    own = [(rng.random(),) for _ in range(rng.choice([1, rng.randint(1, scale)]))]
    prompt = shared + own if rng.random() < 0.8 else list(family)
    policy = rng.choice(policies)
    extra = rng.choice([0, rng.randint(0, scale), rng.randint(0, scale)])
    tokens = policy.min_budget_tokens + extra
    max_new = rng.choice([1, rng.randint(1, scale), rng.randint(1, 4 * scale)])
    if rng.random() < keeps:
        tokens = len(prompt) + max_new + rng.randint(0, 3)
    asked = KVBudget(tokens, policy)
    try:
        check_fits(asked, len(prompt), max_new, pool_tokens)
    except BudgetError:
        return None
    if len(prompt) >= pool_tokens - 6:
        return None  # Scheduler.max_req_input_len
    ends_after = rng.choice([max_new, rng.randint(1, max_new)])
    return Request(prompt, max_new, ends_after, asked)


def simulate(seed, *, steps, pool_tokens, scale, chunk=None, radix=True, policies=(STREAMING,),
             keeps=0.3, families=3, **rules):  # fmt: skip
    rng = random.Random(seed)
    sim = Simulation(pool_tokens, chunk=chunk, radix=radix)
    vars(sim).update(rules)
    bodies = [[(f, i) for i in range(rng.randint(1, 2 * scale))] for f in range(families)]
    sent = 0
    for _ in range(steps):
        while len(sim.waiting) < 4 and rng.random() < 0.6:
            request = make_request(rng, pool_tokens, bodies, scale, policies, keeps)
            if request is not None:
                sim.waiting.append(request)
                sent += 1
        sim.step()
    for _ in range(40 * steps):
        if sim.done == sent:
            break
        sim.step()
    assert sim.done == sent, "a request never ran"
    assert not sim.tree.protected()
    assert sim.room() == sim.total
    return sim


TRAFFIC = {
    "rows that overwrite": {"steps": 400, "pool_tokens": 120, "scale": 20, "keeps": 0.0},
    "some rows keep all": {"steps": 400, "pool_tokens": 120, "scale": 20, "keeps": 0.4},
    "tiny pool": {"steps": 500, "pool_tokens": 30, "scale": 8, "keeps": 0.4},
    "tiny pool, one prefix": {
        "steps": 500,
        "pool_tokens": 24,
        "scale": 6,
        "keeps": 0.3,
        "families": 1,
    },
    "roomy pool": {"steps": 120, "pool_tokens": 400, "scale": 30, "keeps": 0.2},
    "no radix cache": {"steps": 400, "pool_tokens": 120, "scale": 20, "keeps": 0.4, "radix": False},
    "chunked prompts": {
        "steps": 150,
        "pool_tokens": 600,
        "scale": 120,
        "policies": (STREAMING, LONGFLOW),
        "chunk": 64,
    },
    "chunked, all overwrite": {
        "steps": 150,
        "pool_tokens": 600,
        "scale": 120,
        "policies": (STREAMING, LONGFLOW),
        "chunk": 64,
        "keeps": 0.0,
    },
}


@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize("traffic", TRAFFIC)
def test_budgeted_traffic_is_never_retracted(traffic, case):
    sim = simulate(case, **TRAFFIC[traffic])
    assert sim.done > 5  # it was traffic


def test_the_simulation_reaches_every_kind_of_step():
    """Otherwise the claim above would hold for nothing."""
    seen = Counter()
    for case in range(3):
        for name in ("tiny pool", "chunked prompts"):
            seen += simulate(case, **TRAFFIC[name]).counts
    for kind in (Step.APPEND, Step.CUT, Step.OWN, Step.OVERWRITE, "hit", "chunks"):
        assert seen[kind] > 50, kind


def test_several_rows_run_at_their_budget_in_a_pool_they_fill_exactly():
    sim = Simulation(64)
    for i in range(4):
        sim.waiting.append(Request([(i, j) for j in range(5)], 200, 200, budget(16)))
    for _ in range(230):
        sim.step()
        assert sim.room() >= 0
    assert sim.peak_running == 4
    assert sim.done == 4


def run_by_hand(pool_tokens, arrivals, **rules):
    """`arrivals`: (step, prompt, max_new, budget)."""
    sim = Simulation(pool_tokens)
    vars(sim).update(rules)
    for step in range(100):
        for at, prompt, max_new, tokens in arrivals:
            if at == step:
                sim.waiting.append(Request(list(prompt), max_new, max_new, budget(tokens)))
        sim.step()
    assert sim.done == len(arrivals)


#: Two requests. The second one's hit ends inside the first one's credited node and splits it.
SPLIT = (10, [(0, "ab", 9, 5), (3, "ab", 4, 10)])
#: "abcdef" is cached and unlocked. Then an owner and a keeper of it arrive in one pass.
ONE_PASS = (16, [(0, "abcdef", 1, 8), (4, "abcdefx", 20, 8), (4, "abcdefy", 7, 20)])


@pytest.mark.parametrize("scenario", [SPLIT, ONE_PASS], ids=["split node", "one pass"])
def test_a_keeper_reserves_the_copy_that_owners_of_its_prefix_will_need(scenario):
    run_by_hand(*scenario)


@pytest.mark.parametrize("scenario", [SPLIT, ONE_PASS], ids=["split node", "one pass"])
def test_counting_only_hits_credited_at_the_start_of_the_pass_is_too_little(scenario):
    with pytest.raises(AssertionError, match="retraction"):
        run_by_hand(*scenario, held_hits=False)


@pytest.mark.parametrize(
    ("rule", "traffic", "cases", "message"),
    [
        ("held_hits", "tiny pool", 20, "retraction"),
        ("close_chunk", "chunked prompts", 20, "two chunked requests"),
        ("end_by_length", "chunked, all overwrite", 20, "one more chunk"),
    ],
)
def test_each_rule_is_needed(rule, traffic, cases, message):
    for case in range(cases):
        try:
            simulate(case, **TRAFFIC[traffic], **{rule: False})
        except AssertionError as error:
            assert message in str(error)
            return
    pytest.fail(f"{cases} runs without the rule and nothing happened")
