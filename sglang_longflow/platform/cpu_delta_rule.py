# SPDX-License-Identifier: Apache-2.0
"""The gated delta rule (Qwen3-Next, Qwen3.5) on the CPU platform."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sglang_longflow.platform.cpu_refuse import refuse

#: Tokens between the states that a prefill returns, as in SGLang's kernels.
CHUNK_TOKENS = 64
_EPSILON = 1e-6


def fused_gdn_gating(
    A_log: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    dt_bias: torch.Tensor,
    beta: float = 1.0,
    threshold: float = 20.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log decay and write strength, both [1, tokens, heads] float32."""
    step = F.softplus(a.double() + dt_bias.double(), beta, threshold)
    decay = -A_log.double().exp() * step
    return decay.float()[None], b.double().sigmoid().float()[None]


def _normalized(x: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + _EPSILON)


def _delta_step(
    state: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token: the new state [heads, v_dim, k_dim] and its output [heads, v_dim], float32."""
    state = state * decay[:, None, None]
    change = (v - (state * k[:, None, :]).sum(-1)) * beta[:, None]
    state = state + change[:, :, None] * k[:, None, :]
    return state, (state * q[:, None, :]).sum(-1)


def chunk_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    initial_state_indices: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    head_first: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    inplace_update: bool = True,
) -> tuple[torch.Tensor, None, torch.Tensor]:
    """A prefill: outputs [1, tokens, heads, v_dim], and each sequence's states every 64 tokens.

    Parameters
    ----------
    q, k : torch.Tensor
        [1, tokens, key heads, k_dim].
    v : torch.Tensor
        [1, tokens, heads, v_dim].
    g, beta : torch.Tensor
        [1, tokens, heads], see `fused_gdn_gating`.
    initial_state : torch.Tensor
        [slots, heads, v_dim, k_dim]; mutated at `initial_state_indices` [sequences].
    cu_seqlens : torch.Tensor
        [sequences + 1] int32.
    """
    assert initial_state is not None and initial_state_indices is not None
    assert cu_seqlens is not None
    refuse("chunk_gated_delta_rule", head_first=head_first, only_reading=not inplace_update)
    heads = v.shape[2]
    queries, keys = (
        t[0].float().repeat_interleave(heads // t.shape[2], dim=1).contiguous() for t in (q, k)
    )
    if use_qk_l2norm_in_kernel:
        queries, keys = _normalized(queries), _normalized(keys)
    queries = queries * (k.shape[-1] ** -0.5 if scale is None else scale)
    values, decay, strength = v[0].float(), g[0].double().exp().float(), beta[0].float()
    out = torch.empty_like(v)
    states = []
    bounds = cu_seqlens.tolist()
    for i, slot in enumerate(initial_state_indices.tolist()):
        state = initial_state[slot].to(torch.float32, copy=True)
        for t in range(bounds[i], bounds[i + 1]):
            if (t - bounds[i]) % CHUNK_TOKENS == 0:
                states.append(state)
            state, out_t = _delta_step(state, queries[t], keys[t], values[t], decay[t], strength[t])
            out[0, t] = out_t.to(out.dtype)
        if slot >= 0:
            initial_state[slot] = state.to(initial_state.dtype)
    stacked = torch.stack(states) if states else initial_state[:0]
    return out, None, stacked.to(v.dtype)[None]


def fused_recurrent_gated_delta_rule_packed_decode(
    mixed_qkv: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    scale: float,
    initial_state: torch.Tensor,
    out: torch.Tensor,
    ssm_state_indices: torch.Tensor,
    use_qk_l2norm_in_kernel: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of each sequence: fills `out` [batch, 1, heads, v_dim], mutates the states."""
    heads, v_dim, k_dim = initial_state.shape[-3:]
    key_dim = (mixed_qkv.shape[1] - heads * v_dim) // 2
    q, k, v = mixed_qkv.float().split([key_dim, key_dim, heads * v_dim], dim=1)
    q, k = (
        t.view(len(t), -1, k_dim).repeat_interleave(heads * k_dim // key_dim, dim=1) for t in (q, k)
    )
    if use_qk_l2norm_in_kernel:
        q, k = _normalized(q), _normalized(k)
    q, v = q * scale, v.view(len(v), heads, v_dim)
    g, beta = fused_gdn_gating(A_log, a, b, dt_bias)
    decay, beta = g[0].double().exp().float(), beta[0].to(b.dtype).float()
    for i, slot in enumerate(ssm_state_indices.tolist()):
        if slot < 0:  # pads the batch
            out[i] = 0
            continue
        state = initial_state[slot].float()
        state, out_i = _delta_step(state, q[i], k[i], v[i], decay[i], beta[i])
        out[i, 0] = out_i.to(out.dtype)
        initial_state[slot] = state.to(initial_state.dtype)
    return out, initial_state


def fused_qkvzba_split_reshape_cat(
    mixed_qkvz: torch.Tensor,
    mixed_ba: torch.Tensor,
    num_heads_qk: int,
    num_heads_v: int,
    head_qk: int,
    head_v: int,
) -> tuple[torch.Tensor, ...]:
    """Qwen3-Next's projections, which lie key head by key head: q k v, gate z, b and a."""
    group = num_heads_v // num_heads_qk
    sizes = [head_qk, head_qk, group * head_v, group * head_v]
    n = mixed_qkvz.shape[0]
    q, k, v, z = mixed_qkvz.view(n, num_heads_qk, -1).split(sizes, dim=2)
    b, a = mixed_ba.view(n, num_heads_qk, -1).split([group, group], dim=2)
    qkv = torch.cat([t.reshape(n, -1) for t in (q, k, v)], dim=1)
    return (
        qkv,
        z.reshape(n, num_heads_v, head_v),
        b.reshape(n, num_heads_v),
        a.reshape(n, num_heads_v),
    )


def fused_qkvzba_split_reshape_cat_contiguous(
    mixed_qkvz: torch.Tensor,
    mixed_ba: torch.Tensor,
    num_heads_qk: int,
    num_heads_v: int,
    head_qk: int,
    head_v: int,
) -> tuple[torch.Tensor, ...]:
    """Qwen3.5's projections, all of a kind together: q k v, gate z, b and a."""
    n, values = mixed_qkvz.shape[0], num_heads_v * head_v
    qkv, z = mixed_qkvz.split([mixed_qkvz.shape[1] - values, values], dim=1)
    b, a = mixed_ba.split([num_heads_v, num_heads_v], dim=1)
    return qkv.contiguous(), z.reshape(n, num_heads_v, head_v), b.contiguous(), a.contiguous()
