"""What holds for every policy."""

import pytest

from sglang_longflow.policies import make_policy, policy_names

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
