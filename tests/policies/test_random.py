# SPDX-License-Identifier: Apache-2.0
"""Random eviction: reproducible, even, and never a protected token."""

from collections import Counter

import pytest
import torch

from sglang_longflow.policies import FullRows, make_policy
from sglang_longflow.policies import random as module

CPU = torch.device("cpu")


@pytest.mark.parametrize(("sinks", "recent"), [(0, 0), (4, 0), (0, 5), (3, 7)])
@pytest.mark.parametrize("extra", [0, 1, 30])
def test_protected_tokens_are_never_drawn(sinks, recent, extra):
    policy = make_policy("random", protect_sink_tokens=sinks, protect_recent_tokens=recent)
    budget = sinks + recent + 2 + extra
    written = list(range(budget))
    for done in range(4 * budget):
        victim = policy.known_victim(budget, done)
        assert sinks <= victim < budget
        assert victim not in (written[-recent:] if recent else [])
        written.append(victim)


def test_draws_do_not_depend_on_the_order_they_are_asked_for():
    policy = make_policy("random", protect_recent_tokens=3)
    later = [policy.known_victim(40, done) for done in (500, 3, 77, 0)]
    module._drawn.cache_clear()
    assert later == [policy.known_victim(40, done) for done in (500, 3, 77, 0)]


def test_every_slot_is_drawn_about_as_often():
    policy = make_policy("random")
    counts = Counter(policy.known_victim(50, done) for done in range(20_000))
    assert set(counts) == set(range(50))
    assert max(counts.values()) < 1.3 * 400 and min(counts.values()) > 0.7 * 400
    pairs = {(policy.known_victim(50, n), policy.known_victim(50, n + 1)) for n in range(20_000)}
    assert len(pairs) > 0.99 * 2500  # one draw says nothing about the next


def test_rows_need_no_scores():
    def refuse():
        pytest.fail("random needs no scores")

    rows = FullRows(
        budget_tokens=40,
        overwrites=[0, 9, 9],
        device=CPU,
        compute_scores=refuse,
        compute_attention=refuse,
    )
    policy = make_policy("random")
    victims = policy.victims(rows)
    assert victims.dtype == torch.int64
    assert victims.tolist() == [policy.known_victim(40, done) for done in (0, 9, 9)]
