# SPDX-License-Identifier: Apache-2.0
"""What holds for every policy."""

import pytest
import torch

from longflow_kernels import Novelty, RankRule
from sglang_longflow.backend.policy_memory import LayerRows, PolicyMemory, StepRows
from sglang_longflow.core.contracts import FullRow, KVBudget
from sglang_longflow.policies import FullRows, make_policy, policy_names
from sglang_longflow.policies.rows import Needs, NoMemory, RowMemory

FUSED = ("longflow", "longflow-peak", "longflow-novel", "streaming", "tova", "random")


@pytest.mark.parametrize("name", policy_names())
def test_the_fused_kernel_ranks_by_a_score_of_its_own_or_is_told_the_victim(name):
    policy = make_policy(name)
    assert policy.ranks_by in (None, "removal", "attention")
    assert policy.is_fused == (name in FUSED)
    told = policy.known_victim(100, 7) is not None
    assert policy.is_fused == (told or policy.ranks_by is not None)
    assert not (told and policy.ranks_by)


@pytest.mark.parametrize("name", policy_names())
def test_victims_are_picked_at_once_for_at_most_an_eighth_of_the_row(name):
    policy = make_policy(name)
    for budget in (policy.min_budget_tokens, 100, 1024, 32_768):
        interval = policy.interval_tokens(budget)
        assert interval == max(1, min(policy.needs.queue_tokens, budget // 8))
        due = [done for done in range(3 * interval) if policy.is_due(budget, done)]
        assert due == [0, interval, 2 * interval]


def test_the_kernel_is_told_the_policys_own_numbers():
    for name in policy_names():
        if name not in ("longflow-peak", "longflow-novel"):
            policy = make_policy(name, protect_sink_tokens=25)
            assert policy.rank_rule == RankRule(first_tokens_kept=25)
            assert policy.rank_rule.remembers == 0
    peak = make_policy("longflow-peak", protect_sink_tokens=3).rank_rule
    assert peak == RankRule(first_tokens_kept=3, decay=0.95)
    assert (peak.remembers, peak.values_per_slot(8)) == (1, 8)
    novelty = Novelty(weight=16.0, level_share=0.2, recall_threshold=0.04, similarity_threshold=0.9)
    novel = make_policy("longflow-novel").rank_rule
    assert novel == RankRule(first_tokens_kept=4, decay=0.95, novelty=novelty)
    assert (novel.remembers, novel.values_per_slot(1)) == (2, 2)
    assert novelty.span == pytest.approx(0.1)
    assert make_policy("longflow-novel", protect_sink_tokens=9).rank_rule.first_tokens_kept == 9


#: What each call of a policy's memory needs, and arguments for it.
CALLS = {
    "order": ("slot_order=True", ()),
    "accumulate": ("slot_score=True", (torch.zeros(1, 4), 0.9, True)),
    "past": ("slot_score=True", (0.9,)),
    "max_similarity": ("slot_similarity=True", (torch.zeros(1, 4),)),
    "level": ("slot_similarity=True", (torch.zeros(1, 4), 0.2)),
    "recall": ("slot_similarity=True", (torch.zeros(1, 1), 0.1)),
    "queries": ("query_window=...", ()),
    "store_queue": ("queue_tokens=...", (torch.zeros(1, 2),)),
    "queued": ("queue_tokens=...", (2,)),
}


def memory_of(needs):
    """A row of four slots in a server that keeps what `needs` says."""
    memory = PolicyMemory(
        needs,
        num_layers=1,
        num_rows=1,
        num_slots=4,
        num_q_heads=1,
        head_dim=8,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    zero = torch.zeros(1, dtype=torch.int64)
    row = FullRow(0, KVBudget(4, make_policy("longflow")), 2, 6, False)
    return LayerRows(memory, 0, StepRows(zero, torch.arange(4)[None], zero + 5, [row]), zero)


@pytest.mark.parametrize("call", CALLS)
def test_memory_that_was_not_declared_is_refused_with_the_need_to_declare(call):
    need, arguments = CALLS[call]
    name = need.split("=")[0]
    others = dict(slot_score=True, slot_order=True, query_window=3, queue_tokens=2)
    others.pop(name, None)  # the need itself; similarity is in none of them
    for memory in (NoMemory(), memory_of(Needs()), memory_of(Needs(**others))):
        with pytest.raises(RuntimeError) as caught:
            getattr(memory, call)(*arguments)
        assert f"rows.memory.{call}()" in str(caught.value)
        assert f"needs = Needs({need})" in str(caught.value)
    declared = Needs(slot_score=True, slot_order=True, query_window=3, queue_tokens=2)
    if name == "slot_similarity":
        declared = Needs(slot_score=True, slot_similarity=True)
    getattr(memory_of(declared), call)(*arguments)


def test_every_call_of_the_memory_is_tried():
    assert set(CALLS) == {name for name in vars(RowMemory) if not name.startswith("_")}
    assert set(CALLS) == {name for name in vars(NoMemory) if not name.startswith("_")}


def test_rows_of_a_policy_without_needs_have_no_memory():
    rows = FullRows(
        budget_tokens=4,
        overwrites=[0],
        device=torch.device("cpu"),
        compute_scores=lambda: None,
        compute_attention=lambda: None,
    )
    with pytest.raises(RuntimeError, match=r"declare needs = Needs\(slot_order=True\)"):
        rows.newest(2)
