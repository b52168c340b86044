# SPDX-License-Identifier: Apache-2.0
"""The claim: a batch of budgeted rows never waits for a slot, in simulated traffic."""

from collections import Counter

import pytest

from pool_simulation import TRAFFIC, Request, Simulation, budget, simulate
from sglang_longflow.core.slots import Step


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
SPLIT = (8, [(0, "abc", 7, 5), (2, "abc", 2, 9)])
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
