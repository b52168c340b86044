# SPDX-License-Identifier: Apache-2.0
"""Short causal convolutions on the CPU platform, with the last inputs kept for each request."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from sglang_longflow.platform.cpu_refuse import refuse


def _convolve(
    window: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: Any
) -> torch.Tensor:
    """[n, dim] float32 out of `window` [n + width - 1, dim]."""
    width = weight.shape[1]
    count = window.shape[0] - width + 1
    window, weight = window.float(), weight.float()
    out = window[:count] * weight[:, 0]
    for tap in range(1, width):
        out = out + window[tap : tap + count] * weight[:, tap]
    if bias is not None:
        out = out + bias.float()
    return F.silu(out.double()).float() if activation in ("silu", "swish", True) else out


def causal_conv1d_fn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    conv_states: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens_cpu: Any = None,
    cache_indices: torch.Tensor | None = None,
    has_initial_state: torch.Tensor | None = None,
    activation: Any = "silu",
    pad_slot_id: int = -1,
    validate_data: bool = False,
    block_table: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Convolve `x` [dim, tokens] sequence by sequence; leaves the last inputs in `conv_states`."""
    refuse("causal_conv1d_fn", block_table=block_table)
    width = weight.shape[1]
    out = torch.zeros_like(x)
    starts = query_start_loc.tolist()
    slots = range(len(starts) - 1) if cache_indices is None else cache_indices.tolist()
    for i, slot in enumerate(slots):
        start, end = starts[i], starts[i + 1]
        if slot == pad_slot_id or start == end:
            continue
        state = conv_states[slot]
        before = state[:, state.shape[1] - width + 1 :].T
        if has_initial_state is None or not has_initial_state[i]:
            before = torch.zeros_like(before)
        window = torch.cat([before.to(x.dtype), x[:, start:end].T])
        out[:, start:end] = _convolve(window, weight, bias, activation).T.to(out.dtype)
        state[:, state.shape[1] - width + 1 :] = window[end - start :].T
    return out


def causal_conv1d_update(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: Any = None,
    cache_seqlens: torch.Tensor | None = None,
    conv_state_indices: torch.Tensor | None = None,
    num_accept_tokens: torch.Tensor | None = None,
    intermediate_conv_window: torch.Tensor | None = None,
    intermediate_state_indices: torch.Tensor | None = None,
    retrieve_next_token: torch.Tensor | None = None,
    retrieve_next_sibling: torch.Tensor | None = None,
    retrieve_parent_token: torch.Tensor | None = None,
    pad_slot_id: int = -1,
    metadata: Any = None,
    validate_data: bool = False,
) -> torch.Tensor:
    """One token `x` [batch, dim] of each sequence."""
    refuse(
        "causal_conv1d_update",
        cache_seqlens=cache_seqlens,
        num_accept_tokens=num_accept_tokens,
        intermediate_conv_window=intermediate_conv_window,
        retrieve_next_token=retrieve_next_token,
        tokens=x.dim() != 2,
    )
    width = weight.shape[1]
    out = torch.zeros_like(x)
    slots = range(len(x)) if conv_state_indices is None else conv_state_indices.tolist()
    for i, slot in enumerate(slots):
        if slot == pad_slot_id:
            continue
        state = conv_state[slot]
        window = torch.cat([state[:, state.shape[1] - width + 1 :].T.to(x.dtype), x[i : i + 1]])
        out[i] = _convolve(window, weight, bias, activation)[0].to(out.dtype)
        state[:, state.shape[1] - width + 1 :] = window[1:].T
    return out
