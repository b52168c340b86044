# SPDX-License-Identifier: Apache-2.0
"""Policies that remember: their victims, step after step, against plain code token by token."""

from dataclasses import replace

import pytest
import torch

from longflow_kernels import attention_mass, removal_scores
from reference_rankings import ReferenceRow
from sglang_longflow.backend.policy_memory import LayerRows, PolicyMemory, StepRows
from sglang_longflow.core.contracts import FullRow, KVBudget
from sglang_longflow.policies import FullRows, make_policy

HEADS, KV_HEADS, DIM, BUDGET, ROWS = 4, 2, 16, 72, 5
RECENT = 20
SCALE = DIM**-0.5
NAMES = (
    *("longflow-peak", "longflow-novel", "h2o", "h2o-last", "vatp", "snapkv-decode"),
    *("rkv", "rpc", "keydiff"),
)


FUSED = ("longflow-peak", "longflow-novel")


def policy_of(name):
    """The policy; of `longflow-novel` with fewer recent tokens, so that more are ranked."""
    policy = make_policy(name)
    return replace(policy, recent_tokens=RECENT) if name == "longflow-novel" else policy


class Row:
    """A row in the pool as the server has it, beside its reference."""

    def __init__(self, name, index, prompt, seed):
        self.random = torch.Generator().manual_seed(seed)
        self.reference = ReferenceRow(name, BUDGET, recent=RECENT * (name == "longflow-novel"))
        self.ring = torch.arange(BUDGET - RECENT, BUDGET, dtype=torch.int32)
        self.index, self.prompt, self.steps, self.victim = index, prompt, 0, -1
        self.k = torch.zeros(BUDGET, KV_HEADS, DIM)
        self.v = torch.zeros(BUDGET, KV_HEADS, DIM)
        for place in range(prompt):
            self.k[place], self.v[place] = self.token()
            self.reference.fill(self.k[place], self.v[place])

    def token(self):
        def draw():
            return torch.randn(KV_HEADS, DIM, generator=self.random)

        key = draw()
        if self.prompt_written() and torch.rand(1, generator=self.random) < 0.4:  # nearly a copy
            again = torch.randint(self.prompt_written(), (1,), generator=self.random)
            key = self.k[again].squeeze(0) + 0.3 * draw()
        return key, draw()

    def prompt_written(self):
        return int((self.k.abs().sum(dim=(1, 2)) > 0).sum())

    def decode(self):
        """One step: returns (q, overwrites or None, the row index written)."""
        k, v = self.token()
        q = torch.randn(HEADS, DIM, generator=self.random)
        filled = self.prompt + self.steps
        place = filled if filled < BUDGET else self.victim
        self.k[place], self.v[place] = k, v
        self.steps += 1
        self.expected = self.reference.step(q, k, v)
        overwrites = filled + 1 - BUDGET
        if overwrites > 0:
            self.ring[(overwrites - 1) % RECENT] = place
        return q, overwrites if overwrites >= 0 else None, place


def memory_for(policy, rows=ROWS + 1):
    return PolicyMemory(
        policy.needs,
        num_layers=2,
        num_rows=rows,
        num_slots=rows * BUDGET + 1,
        num_q_heads=HEADS,
        head_dim=DIM,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def poison(memory):
    for tensor in (
        memory.slot_score,
        memory.slot_similarity,
        memory.row_level,
        memory.row_recall,
        memory.queries,
    ):
        if tensor is not None:
            tensor.fill_(torch.nan)
    for tensor in (memory.slot_order, memory.queue):
        if tensor is not None:
            tensor.fill_(12_345)


def pick(policy, memory, slots, members):
    """Victims of rows [(row, q, overwrites, place)] as the reference decode asks for them."""
    rows, queries, overwrites, _ = zip(*members, strict=True)
    index = torch.tensor([row.index for row in rows])
    keys = torch.stack([row.k for row in rows])
    budget = KVBudget(BUDGET, policy)
    full = [
        FullRow(i, budget, done, row.steps, False) for i, (row, _, done, _) in enumerate(members)
    ]
    positions = torch.tensor([row.prompt + row.steps - 1 for row in rows])
    step = StepRows(index, slots[index], positions, full)
    # What a row that has just filled was to overwrite is what the row before it was.
    victims = [place if done else 12_345 for (_, _, done, place) in members]
    layer = LayerRows(memory, 1, step, torch.tensor(victims))
    return policy.victims(
        FullRows(
            budget_tokens=BUDGET,
            overwrites=list(overwrites),
            device=torch.device("cpu"),
            compute_scores=lambda: removal_scores(
                torch.stack(queries), keys, torch.stack([row.v for row in rows]), SCALE
            ),
            compute_attention=lambda: attention_mass(torch.stack(queries), keys, SCALE),
            prompt_tokens=[row.prompt for row in rows],
            recent=torch.stack([row.ring for row in rows]) if policy.recent_tokens_kept else None,
            load=lambda name: torch.stack([getattr(row, name) for row in rows]),
            memory=layer,
            scaling=SCALE,
        )
    ).tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_victims_follow_plain_code_token_by_token(name):
    """Rows of other lengths in one group, other slots each time, poison in the memory."""
    policy = policy_of(name)
    assert policy.min_budget_tokens <= BUDGET
    assert policy.is_fused == (name in FUSED)
    memory = memory_for(policy)
    poison(memory)
    slots = torch.randperm((ROWS + 1) * BUDGET + 1)[: (ROWS + 1) * BUDGET].view(ROWS + 1, BUDGET)
    rows = [Row(name, i, prompt, seed=i) for i, prompt in enumerate((3, 20, 40, 71, 55))]
    seen = 0
    for _ in range(130):
        due = {True: [], False: []}
        for row in rows:
            q, overwrites, place = row.decode()
            index, position = torch.tensor([row.index]), torch.tensor([row.prompt + row.steps - 1])
            memory.record_queries(1, index, position, q[None])
            if overwrites is not None:
                due[policy.is_due(BUDGET, overwrites)].append((row, q, overwrites, place))
        for members in due.values():
            if members:
                got = pick(policy, memory, slots, members)
                assert got == [row.expected for row, *_ in members]
                for (row, *_), victim in zip(members, got, strict=True):
                    row.victim = victim
                    seen += 1
    assert seen > 300


@pytest.mark.parametrize("name", NAMES)
def test_a_rows_victims_do_not_depend_on_what_its_memory_held_before(name):
    """A second request in the same row and slots: the first one's memory is never read."""
    policy = policy_of(name)
    memory = memory_for(policy, rows=1)
    slots = torch.randperm(BUDGET)[None]
    for seed in (1, 2):
        row = Row(name, 0, 60, seed)
        for _ in range(40):
            q, overwrites, place = row.decode()
            position = torch.tensor([row.prompt + row.steps - 1])
            memory.record_queries(1, torch.tensor([0]), position, q[None])
            if overwrites is not None:
                (row.victim,) = pick(policy, memory, slots, [(row, q, overwrites, place)])
                assert row.victim == row.expected


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_what_the_policy_needs_and_is_counted(name):
    policy = make_policy(name)
    needs, memory = policy.needs, memory_for(policy)
    slots, window, queue = (ROWS + 1) * BUDGET + 1, needs.query_window, needs.queue_tokens
    words = slots * (needs.slot_score + needs.slot_similarity + needs.slot_order)
    words += (ROWS + 1) * (window * HEADS * DIM + queue + needs.slot_similarity)
    shared = (ROWS + 1) * needs.slot_similarity  # by the two layers
    assert memory.nbytes == 4 * (2 * words + shared)
    assert needs.any == (name != "keydiff")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("sinks", "recent"), [(0, 0), (4, 6)])
def test_the_smallest_budget_leaves_a_choice(name, sinks, recent):
    """Rows of the minimum budget never give up what is protected, and never the same slot twice."""
    policy = make_policy(name, protect_sink_tokens=sinks, protect_recent_tokens=recent)
    budget = policy.min_budget_tokens
    recent = policy.recent_tokens_kept
    late = torch.zeros(1, budget)
    late[:, budget - max(recent, policy.needs.query_window) :] = torch.inf
    ring = torch.arange(budget - recent, budget)[None] if recent else None
    rows = FullRows(
        budget_tokens=budget,
        overwrites=[0],
        device=torch.device("cpu"),
        compute_scores=lambda: None,
        compute_attention=lambda: None,
        recent=ring,
    )
    interval = policy.interval_tokens(budget)
    queue = rows.lowest(late, policy.first_tokens_kept, interval)[0].tolist()
    assert len(set(queue)) == interval
    assert min(queue) >= policy.first_tokens_kept
    assert max(queue) < budget - max(recent, policy.needs.query_window)
