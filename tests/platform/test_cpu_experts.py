# SPDX-License-Identifier: Apache-2.0
"""Experts without a gate, against a loop over single tokens."""

import torch

from sglang_longflow.platform.cpu_experts import squared_relu_experts


def test_each_token_gets_its_own_experts_by_weight():
    torch.manual_seed(0)
    x, up, down = torch.randn(5, 6), torch.randn(4, 3, 6), torch.randn(4, 6, 3)
    weights = torch.rand(5, 2)
    chosen = torch.tensor([[0, 1], [1, 3], [3, 0], [0, 3], [1, 0]])  # nobody takes 2
    wanted = torch.stack(
        [
            sum(
                weights[t, j] * (down[e] @ torch.relu(up[e] @ x[t]) ** 2)
                for j, e in enumerate(chosen[t].tolist())
            )
            for t in range(5)
        ]
    )
    torch.testing.assert_close(squared_relu_experts(x, up, down, weights, chosen), wanted)
