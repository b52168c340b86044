# SPDX-License-Identifier: Apache-2.0
"""A pool and a radix tree as plain Python sets and lists.

Driven by the accounting functions in the order in which SGLang's scheduler (with overlap) and our
hooks call them. Its claim is that a budgeted batch never needs retraction.
"""

import random
from collections import Counter
from dataclasses import dataclass, field

from node_tree import freed, path_to_root
from sglang_longflow.core.admission import admission_need, reserve_for
from sglang_longflow.core.contracts import KVBudget
from sglang_longflow.core.prompt import chunk_end, max_prefix_tokens
from sglang_longflow.core.request import check_fits
from sglang_longflow.core.rows import ResidentRow, Step
from sglang_longflow.core.slots import slots_required
from sglang_longflow.errors import BudgetError
from sglang_longflow.policies import make_policy

STREAMING = make_policy("streaming")
LONGFLOW = make_policy("longflow")


def budget(tokens, policy=STREAMING):
    return KVBudget(tokens, policy)


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
    decode_steps: int = 0
    finished: bool = False

    @property
    def total(self):
        return len(self.prompt) + self.max_new

    @property
    def window(self):
        cut = self.budget.must_cut(len(self.prompt))
        return self.budget.policy.prompt_window_tokens if cut else 0

    def resident_row(self):
        held = len(self.slots)
        return ResidentRow(self.budget, held, held, self.total, self.tree_slots, self.owned,
                           self.must_cut, self.last_node, self.decode_steps)  # fmt: skip

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
        A request that keeps its hit reserves all of it that anyone else holds: rows that were
        credited with it must copy it.
    close_chunk : bool
        No request joins a chunk that was shortened for the window: one chunked request at a time.
    end_by_length : bool
        A chunk that was run to the end of its prompt is the last one, whatever SGLang's limit said.
    beside : callable or None
        Makes a request of its own kind from a random number generator: half of the traffic.
    """

    held_hits = True
    close_chunk = True
    end_by_length = True
    beside = None

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

    def need(self, r, *, lock_held):
        """`hooks.admission._need`."""
        before = self.tree.evictable()
        self.tree.lock(r.last_node, -1 if lock_held else +1)
        own_hit = abs(self.tree.evictable() - before)
        self.tree.lock(r.last_node, +1 if lock_held else -1)
        held = r.start - own_hit if self.held_hits and not lock_held else 0
        return admission_need(r.budget, len(r.prompt), r.total, r.start, own_hit, held)

    def prefill_pass(self):
        """`PrefillAdder` with the hooks of `hooks.admission`; returns the requests to prefill."""
        rows = [r.resident_row() for r in self.running if not r.finished]
        offset = sum(reserve_for(rows, freed))
        chosen, left_in_chunk = [], self.chunk
        if self.chunked is not None:
            r = self.chunked
            r.start = r.end
            remaining = self.room() - offset
            limit = min(self.chunk, remaining) if remaining > 0 else self.chunk
            need = self.need(r, lock_held=True)
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
            need = self.need(r, lock_held=False)
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

    def ends_with_last_result(self, r):
        """``Scheduler._reqs_finishing_inflight``: by its length, so it takes no further step."""
        launched = self.last is not None and any(r is one for one in self.last[1])
        return launched and r.outputs + 1 >= r.max_new

    def make_room(self, rows):
        """The decode memory check: the rows that decode; none of them is ever retracted."""
        required = slots_required([r.resident_row() for r in rows], freed)
        assert required <= self.room(), "the decode memory check asks for retraction"
        return rows

    def launch_decode(self):
        """Returns the rows that took a step."""
        rows = self.make_room([r for r in self.running if not self.ends_with_last_result(r)])
        for r in rows:  # `hooks.slots._insert_prompts`
            if r.resident_row().step is Step.CUT:
                self.cache_unfinished(r)
        plans = [r.resident_row() for r in rows]
        again = slots_required(plans, freed)
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
            r.decode_steps += 1
            if step is Step.APPEND:
                r.slots += mine
            elif step is Step.OVERWRITE:
                assert r.owned and len(r.slots) == r.budget.tokens
            else:
                kept = [] if step is Step.CUT else r.slots[r.tree_slots :]
                r.slots, r.tree_slots = mine + kept, 0
                r.owned, r.must_cut = True, False
                assert len(r.slots) == r.budget.tokens
            assert r.budget.is_full or len(r.slots) <= r.budget.tokens
        return rows

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
            batch = ("decode", list(self.launch_decode()))
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
             keeps=0.3, families=3, kind=Simulation, **rules):  # fmt: skip
    """One run of random traffic on a simulation of `kind`."""
    rng = random.Random(seed)
    sim = kind(pool_tokens, chunk=chunk, radix=radix)
    vars(sim).update(rules)
    bodies = [[(f, i) for i in range(rng.randint(1, 2 * scale))] for f in range(families)]
    sent = 0
    for _ in range(steps):
        while len(sim.waiting) < 4 and rng.random() < 0.6:
            if sim.beside is not None and rng.random() < 0.5:
                request = sim.beside(rng)
            else:
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
