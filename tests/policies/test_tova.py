# SPDX-License-Identifier: Apache-2.0
"""TOVA: the least attended slot goes; protections and cuts are those of longflow."""

import pytest
import torch

from longflow_kernels import attention_mass
from sglang_longflow.policies import FullRows, PromptEnd, make_policy

CPU = torch.device("cpu")


def refuse():
    pytest.fail("tova needs no values")


def victims(policy, mass, recent=None):
    rows = FullRows(
        budget_tokens=mass.shape[1],
        overwrites=[0] * mass.shape[0],
        device=CPU,
        compute_scores=refuse,
        compute_attention=lambda: mass,
        recent=recent,
    )
    return policy.victims(rows).tolist()


def test_the_least_attended_slot_of_real_queries():
    torch.manual_seed(0)
    q, k = torch.randn(3, 6, 16), torch.randn(3, 29, 2, 16)
    mass = attention_mass(q, k, 0.25)
    torch.testing.assert_close(mass.sum(dim=1), torch.ones(3))
    for row in range(3):
        shares = torch.zeros(29)
        for head in range(6):
            logits = [float(q[row, head] @ k[row, i, head // 3]) * 0.25 for i in range(29)]
            shares += torch.tensor(logits).softmax(dim=0) / 6
        torch.testing.assert_close(mass[row], shares)
        assert victims(make_policy("tova"), mass)[row] == shares.argmin()


def test_protected_slots_stay_and_ties_go_to_the_lowest_index():
    mass = torch.full((2, 9), 0.1)
    assert victims(make_policy("tova"), mass) == [0, 0]
    policy = make_policy("tova", protect_sink_tokens=2, protect_recent_tokens=2)
    recent = torch.tensor([[2, 5], [7, 8]])
    assert victims(policy, mass, recent) == [3, 2]
    assert torch.equal(mass, torch.full((2, 9), 0.1))


def test_the_cut_is_longflows():
    scores = torch.rand(2, 168)
    kept = [
        make_policy(name).prompt_keep(PromptEnd(200, 63, scores, CPU)).tolist()
        for name in ("tova", "longflow", "random")
    ]
    assert kept[0] == kept[1] == kept[2] and [len(layer) for layer in kept[0]] == [63, 63]
