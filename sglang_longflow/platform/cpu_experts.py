# SPDX-License-Identifier: Apache-2.0
"""Experts without a gate on the CPU platform: Nemotron-H's, down(relu(up x)^2)."""

from __future__ import annotations

import functools
from typing import Any

import torch


def squared_relu_experts(
    x: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    chosen: torch.Tensor,
) -> torch.Tensor:
    """[tokens, hidden], each token's experts summed by weight in float32.

    Parameters
    ----------
    x : torch.Tensor
        [tokens, hidden].
    up, down : torch.Tensor
        [experts, intermediate, hidden] and [experts, hidden, intermediate].
    weights, chosen : torch.Tensor
        [tokens, k], of the experts chosen, and which they are.
    """
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in chosen.unique().tolist():
        token, place = torch.where(chosen == expert)
        hidden = torch.relu(x[token] @ up[expert].T).square()
        out[token] += (hidden @ down[expert].T).float() * weights[token, place, None].float()
    return out.to(x.dtype)


def add_squared_relu_to_experts() -> None:
    """Have SGLang's PyTorch form of experts take this activation too; it refuses it."""
    from sglang.srt.layers.moe import fused_moe_native

    stock = fused_moe_native.moe_forward_native

    @functools.wraps(stock)
    def moe_forward_native(layer: Any, x: Any, topk_output: Any, moe_runner_config: Any) -> Any:
        if moe_runner_config.activation != "relu2" or moe_runner_config.is_gated:
            return stock(layer, x, topk_output, moe_runner_config)
        weights, chosen, _ = topk_output
        return squared_relu_experts(x, layer.w13_weight, layer.w2_weight, weights, chosen)

    fused_moe_native.moe_forward_native = moe_forward_native
