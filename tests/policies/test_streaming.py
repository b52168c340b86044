# SPDX-License-Identifier: Apache-2.0
"""Streaming: sinks stay, the oldest of the others goes."""

import pytest
import torch

from sglang_longflow.policies import FullRows, PromptEnd, make_policy, policy_names

CPU = torch.device("cpu")


def refuse(*_):
    pytest.fail("streaming needs no scores")


def victims(policy, budget, overwrites):
    rows = FullRows(
        budget_tokens=budget,
        overwrites=overwrites,
        device=CPU,
        compute_scores=refuse,
        compute_attention=refuse,
    )
    return policy.victims(rows).tolist()


@pytest.mark.parametrize("sinks", [0, 1, 4])
@pytest.mark.parametrize("budget", [6, 7, 16])
def test_victim_is_the_oldest_token_that_is_no_sink(sinks, budget):
    policy = make_policy("streaming", protect_sink_tokens=sinks)
    age = list(range(budget))  # when each row index was written
    for done in range(5 * budget):
        expected = min(range(sinks, budget), key=lambda i: age[i])
        assert victims(policy, budget, [done]) == [expected]
        age[expected] = budget + done


def test_rows_in_different_phases_are_independent():
    policy = make_policy("streaming", protect_sink_tokens=2)
    assert victims(policy, 7, [0, 1, 4, 5, 6, 10**9]) == [2, 3, 6, 2, 3, 2 + 10**9 % 5]


@pytest.mark.parametrize(("sinks", "recent"), [(0, 0), (3, 0), (0, 5), (3, 5)])
def test_minimum_budget_never_overwrites_what_is_protected(sinks, recent):
    policy = make_policy("streaming", protect_sink_tokens=sinks, protect_recent_tokens=recent)
    budget = policy.min_budget_tokens
    assert budget == sinks + recent + 2
    written = list(range(budget))
    for done in range(60):
        (victim,) = victims(policy, budget, [done])
        assert victim >= sinks
        assert victim not in (written[-recent:] if recent else [])
        written.append(victim)


@pytest.mark.parametrize("sinks", [0, 4])
@pytest.mark.parametrize(("prompt", "budget"), [(8, 8), (9, 8), (500, 8), (500, 499), (64, 6)])
def test_cut_keeps_sinks_and_the_last_tokens(prompt, budget, sinks):
    policy = make_policy("streaming", protect_sink_tokens=sinks)
    kept = policy.prompt_keep(PromptEnd(prompt, budget - 1, None, CPU))
    assert kept.dtype == torch.int64
    recent = budget - 1 - sinks
    assert kept.tolist() == [*range(sinks), *range(prompt - recent, prompt)]
    assert len(set(kept.tolist())) == budget - 1


def test_streaming_scores_no_prompt_so_every_prefix_hit_is_allowed():
    assert make_policy("streaming").prompt_window_tokens == 0


def test_policies_are_values():
    for name in policy_names():
        assert make_policy(name).name == name
        assert make_policy(name) == make_policy(name)
        assert make_policy(name) != make_policy(name, protect_sink_tokens=1)
        assert len({make_policy(name), make_policy(name)}) == 1
    assert make_policy("longflow") != make_policy("streaming")
    with pytest.raises(KeyError):
        make_policy("none")
