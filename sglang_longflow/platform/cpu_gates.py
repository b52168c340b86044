# SPDX-License-Identifier: Apache-2.0
"""Norms and products with a gate on the CPU platform."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sglang_longflow.platform.cpu_refuse import refuse


def rms_norm_gated(
    x: torch.Tensor,
    g: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    activation: str = "swish",
    residual: torch.Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> torch.Tensor:
    """norm(x) * weight * activation(g), computed in float32."""
    refuse("rms_norm_gated", bias=bias, residual=residual, prenorm=prenorm)
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if weight is not None:
        wide = wide * weight.float()
    gate = g.float().reshape(wide.shape)
    return (wide * (gate.sigmoid() if activation == "sigmoid" else F.silu(gate))).to(x.dtype)


def layernorm_fn(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    z: torch.Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
    activation: str = "swish",
) -> torch.Tensor:
    """norm(x) * activation(z); with ``norm_before_gate=False`` norm(x * activation(z))."""
    refuse("layernorm_fn", bias=bias, mean=not is_rms_norm)
    gate = None
    if z is not None:
        wide = z.float()
        gate = wide.sigmoid() if activation == "sigmoid" else F.silu(wide)
    wide = x.float()
    if gate is not None and not norm_before_gate:
        wide = wide * gate
    groups = wide.unflatten(-1, (-1, group_size or wide.shape[-1]))
    groups = groups * torch.rsqrt(groups.pow(2).mean(-1, keepdim=True) + eps)
    wide = groups.flatten(-2)
    if weight is not None:
        wide = wide * weight.float()
    if gate is not None and norm_before_gate:
        wide = wide * gate
    return wide.to(x.dtype)


def fused_sigmoid_mul(
    attn_output: torch.Tensor, gate: torch.Tensor, inplace: bool = False, quant: bool = False
) -> torch.Tensor:
    """attn_output * sigmoid(gate)."""
    refuse("fused_sigmoid_mul", quant=quant)
    out = attn_output * gate.reshape(attn_output.shape).sigmoid()
    return attn_output.copy_(out) if inplace else out


def fused_gate_sigmoid_mul(
    hidden_states: torch.Tensor, gate_weight: torch.Tensor, shared_output: torch.Tensor
) -> torch.Tensor:
    """`shared_output` [tokens, hidden], each token by the sigmoid of its gate."""
    gate = (hidden_states.float() * gate_weight.float()).sum(-1, keepdim=True).sigmoid()
    return (shared_output.float() * gate).to(shared_output.dtype)


def fused_gate_sigmoid_mul_add(
    hidden_states: torch.Tensor,
    gate_weight: torch.Tensor,
    shared_output: torch.Tensor,
    final_hidden_states: torch.Tensor,
) -> None:
    """The same, added to `final_hidden_states`."""
    final_hidden_states += fused_gate_sigmoid_mul(hidden_states, gate_weight, shared_output)
