# SPDX-License-Identifier: Apache-2.0
"""Mamba 2 (Nemotron-H, Falcon-H1, Granite 4) on the CPU platform."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from sglang_longflow.platform.cpu_refuse import refuse


def _step(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    decay: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token: the new state [heads, head_dim, state_size] and its output [heads, head_dim].

    Parameters
    ----------
    x, dt : torch.Tensor
        [heads, head_dim]; `dt` may be [heads, 1].
    decay : torch.Tensor
        [heads, head_dim or 1, state_size or 1].
    B, C : torch.Tensor
        [heads, state_size].
    """
    state = state * decay + (dt * x)[:, :, None] * B[:, None, :]
    return state, (state * C[:, None, :]).sum(-1)


def mamba_chunk_scan_combined(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    chunk_indices: torch.Tensor | None = None,
    chunk_offsets: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    out: torch.Tensor | None = None,
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    return_intermediate_states: bool = False,
    state_dtype: torch.dtype | None = None,
    return_track_states: bool = False,
    track_seq_idx: torch.Tensor | None = None,
    track_end_locs: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """A prefill: fills `out` [1, tokens, heads, head_dim].

    Returns
    -------
    tuple
        States [1, n, heads, head_dim, state_size] before every token whose place in the batch is a
        multiple of `chunk_size`; those after each sequence; those before the tokens at
        `track_end_locs` [k], if any, of the sequences `track_seq_idx`.
    """
    assert cu_seqlens is not None and out is not None and D is not None and dt_bias is not None
    refuse(
        "mamba_chunk_scan_combined",
        z=z,
        return_final_states=return_final_states,
        other_returns=not (return_varlen_states and return_track_states),
        raw_dt=not dt_softplus,
    )
    heads = x.shape[2]
    wide_x = x[0].float()
    wide_B, wide_C = (t[0].float().repeat_interleave(heads // t.shape[2], dim=1) for t in (B, C))
    step = F.softplus(dt[0].double() + dt_bias.double()).clamp(*dt_limit).float()
    decay = torch.exp(step.double() * A.double()).float()
    skip = D.float().view(heads, -1)
    wanted = [] if track_end_locs is None else track_end_locs.tolist()
    owners = [] if track_seq_idx is None else track_seq_idx.tolist()
    tracked: list[Any] = [None] * len(wanted)
    bounds = cu_seqlens.tolist()
    at_grid, after = [], []
    for i in range(len(bounds) - 1):
        state = wide_x.new_zeros(heads, wide_x.shape[2], wide_B.shape[2])
        if initial_states is not None:
            state = initial_states[i].float()
        for t in range(bounds[i], bounds[i + 1] + 1):
            for k, (place, owner) in enumerate(zip(wanted, owners, strict=True)):
                if owner == i and place == t:
                    tracked[k] = state
            if t == bounds[i + 1]:
                break
            if t % chunk_size == 0:
                at_grid.append(state)
            state, y = _step(
                state, wide_x[t], step[t][:, None], decay[t][:, None, None], wide_B[t], wide_C[t]
            )
            out[0, t] = (y + skip * wide_x[t]).to(out.dtype)
        after.append(state)
    dtype = C.dtype if state_dtype is None else state_dtype
    return (
        torch.stack(at_grid).to(dtype)[None],
        torch.stack(after).to(dtype),
        torch.stack(tracked).to(dtype) if tracked else None,
    )


def selective_state_update(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: torch.Tensor | None = None,
    pad_slot_id: int = -1,
    out: torch.Tensor | None = None,
    disable_state_update: bool = False,
    intermediate_states_buffer: torch.Tensor | None = None,
    cache_steps: int | None = None,
    retrieve_parent_token: torch.Tensor | None = None,
    intermediate_state_indices: torch.Tensor | None = None,
) -> None:
    """One token of each sequence: fills `out` [batch, heads, head_dim], mutates `state`.

    Parameters
    ----------
    state : torch.Tensor
        [slots, heads, head_dim, state_size].
    x, dt : torch.Tensor
        [batch, heads, head_dim]; `D` and `dt_bias` [heads, head_dim].
    A : torch.Tensor
        [heads, head_dim, state_size].
    B, C : torch.Tensor
        [batch, groups, state_size].
    """
    assert D is not None and dt_bias is not None and out is not None
    assert state_batch_indices is not None
    refuse(
        "selective_state_update",
        z=z,
        raw_dt=not dt_softplus,
        disable_state_update=disable_state_update,
        intermediate_states_buffer=intermediate_states_buffer,
        retrieve_parent_token=retrieve_parent_token,
    )
    heads = x.shape[1]
    wide_B, wide_C = (t.float().repeat_interleave(heads // t.shape[1], dim=1) for t in (B, C))
    wide_x, step = x.float(), F.softplus(dt.double() + dt_bias.double()).float()
    for i, slot in enumerate(state_batch_indices.tolist()):
        if slot == pad_slot_id:
            out[i] = 0
            continue
        decay = torch.exp(step[i][:, :, None].double() * A.double()).float()
        new, y = _step(state[slot].float(), wide_x[i], step[i], decay, wide_B[i], wide_C[i])
        state[slot] = new.to(state.dtype)
        out[i] = (y + D.float() * wide_x[i]).to(out.dtype)
