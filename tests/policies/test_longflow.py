# SPDX-License-Identifier: Apache-2.0
"""LongFlow's victim is the arg-min over the row; protections and cuts keep their promises."""

import random

import pytest
import torch

from sglang_longflow.policies import FullRows, PromptEnd, make_policy

CPU = torch.device("cpu")


def refuse():
    pytest.fail("longflow ranks by removal")


def full_rows(scores, recent=None, overwrites=None):
    return FullRows(
        budget_tokens=scores.shape[1],
        overwrites=overwrites or [0] * scores.shape[0],
        device=CPU,
        compute_scores=lambda: scores,
        compute_attention=refuse,
        recent=recent,
    )


def naive_victim(scores, protected):
    best = None
    for i, score in enumerate(scores):
        if i not in protected and (best is None or score < scores[best]):
            best = i
    return best


@pytest.mark.parametrize("sinks", [0, 1, 4])
@pytest.mark.parametrize("recent", [0, 1, 6])
@pytest.mark.parametrize("rows", [1, 5])
def test_victim_is_the_lowest_unprotected_score(sinks, recent, rows):
    policy = make_policy("longflow", protect_sink_tokens=sinks, protect_recent_tokens=recent)
    rng = random.Random(sinks * 100 + recent)
    for budget in (sinks + recent + 1, 37, 64):
        scores = torch.rand(rows, budget)
        ring = None
        if recent:
            ring = torch.tensor([rng.sample(range(budget), recent) for _ in range(rows)])
        got = policy.victims(full_rows(scores, ring)).tolist()
        for i in range(rows):
            protected = set(range(sinks)) | set([] if ring is None else ring[i].tolist())
            if len(protected) < budget:
                assert got[i] == naive_victim(scores[i].tolist(), protected)


@pytest.mark.parametrize("values", [[0.0] * 9, [2.0, 1.0, 3.0, 1.0, 1.0], [5.0, 5.0, 0.0, 0.0]])
def test_ties_go_to_the_lowest_index(values):
    scores = torch.tensor([values, values])
    assert (
        make_policy("longflow").victims(full_rows(scores)).tolist()
        == [values.index(min(values))] * 2
    )


def test_ties_among_unprotected_go_to_the_lowest_unprotected_index():
    policy = make_policy("longflow", protect_sink_tokens=2, protect_recent_tokens=2)
    ring = torch.tensor([[2, 5]])
    assert policy.victims(full_rows(torch.zeros(1, 8), ring)).tolist() == [3]


def test_protection_does_not_change_the_callers_scores():
    policy = make_policy("longflow", protect_sink_tokens=2, protect_recent_tokens=1)
    scores = torch.rand(2, 9)
    before = scores.clone()
    policy.victims(full_rows(scores, torch.tensor([[8], [3]])))
    assert torch.equal(scores, before)


def test_a_rows_victim_does_not_depend_on_its_neighbours():
    scores = torch.rand(6, 50)
    policy = make_policy("longflow")
    together = policy.victims(full_rows(scores)).tolist()
    assert together == [policy.victims(full_rows(scores[i : i + 1])).item() for i in range(6)]


@pytest.mark.parametrize(
    ("sinks", "recent", "minimum"), [(0, 0, 34), (4, 0, 38), (0, 10, 34), (4, 40, 46), (0, 33, 35)]
)
def test_minimum_budget_leaves_a_choice(sinks, recent, minimum):
    policy = make_policy("longflow", protect_sink_tokens=sinks, protect_recent_tokens=recent)
    assert policy.min_budget_tokens == minimum


def prompt_end(prompt, budget, scores=None):
    """A prompt in three layers; `scores` are the first one's."""
    drawn = torch.rand(3, prompt - 32)
    if scores is not None:
        drawn[0] = scores
    return PromptEnd(prompt, budget - 1, drawn, CPU)


@pytest.mark.parametrize("sinks", [0, 4])
@pytest.mark.parametrize(
    ("prompt", "budget"), [(38, 38), (39, 38), (100, 38), (100, 100), (997, 64)]
)
def test_cut_keeps_window_and_sinks_sorted_and_exactly_budget_minus_one(prompt, budget, sinks):
    policy = make_policy("longflow", protect_sink_tokens=sinks)
    assert budget >= policy.min_budget_tokens
    kept = policy.prompt_keep(prompt_end(prompt, budget))
    assert kept.dtype == torch.int64 and len(kept) == 3
    for positions in kept.tolist():
        assert len(positions) == budget - 1
        assert positions == sorted(set(positions))
        assert positions[-32:] == list(range(prompt - 32, prompt))
        assert positions[:sinks] == list(range(sinks))


def test_each_layer_is_cut_by_its_own_scores():
    prompt = prompt_end(400, 100)
    policy = make_policy("longflow", protect_sink_tokens=4)
    kept = policy.prompt_keep(prompt)
    assert kept[0].tolist() != kept[1].tolist()
    for layer, positions in enumerate(kept):
        alone = PromptEnd(400, 99, prompt.scores[layer : layer + 1], CPU)
        assert torch.equal(policy.prompt_keep(alone)[0], positions)


def test_cut_keeps_the_highest_scores_of_the_earlier_tokens():
    scores = torch.zeros(68)
    scores[[3, 40, 66]] = torch.tensor([1.0, 3.0, 2.0])
    policy = make_policy("longflow")
    kept = policy.prompt_keep(prompt_end(100, 32 + 3 + 1, scores))[0].tolist()
    assert kept[:3] == [3, 40, 66]
    kept = policy.prompt_keep(prompt_end(100, 32 + 2 + 1, scores))[0].tolist()
    assert kept[:2] == [40, 66]


def test_minimum_budget_can_cut_the_longest_prompt():
    policy = make_policy("longflow", protect_sink_tokens=4, protect_recent_tokens=3)
    kept = policy.prompt_keep(prompt_end(5000, policy.min_budget_tokens))
    assert kept.shape == (3, policy.min_budget_tokens - 1)


def test_scores_are_computed_once_and_only_when_asked_for():
    calls = []

    def compute():
        calls.append(1)
        return torch.zeros(1, 4)

    rows = FullRows(
        budget_tokens=4,
        overwrites=[0],
        device=CPU,
        compute_scores=compute,
        compute_attention=compute,
    )
    assert calls == []
    assert rows.removal_scores is rows.removal_scores
    assert len(calls) == 1
    assert rows.attention_mass is rows.attention_mass
    assert len(calls) == 2
