# SPDX-License-Identifier: Apache-2.0
"""Linear attention on the CPU platform: SGLang's Triton kernels in plain PyTorch.

A stand-in has the parameters and effects of what it replaces. What SGLang offers and no model of
the CPU platform uses is refused, not ignored. A token's result depends on the tokens before it in
its sequence alone, to the last bit: not on its batch, nor on where a prefill was cut into chunks.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

#: Tokens between the states that a prefill of the gated delta rule returns, as in SGLang's kernels.
CHUNK_TOKENS = 64
_EPSILON = 1e-6


def _refuse(name: str, **values: Any) -> None:
    """Raise NotImplementedError if a value that a stand-in does not know is not None or False."""
    for key, value in values.items():
        if value is not None and value is not False:
            raise NotImplementedError(f"{name}: {key} is not supported on the CPU platform")


# causal convolution


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
    return F.silu(out) if activation in ("silu", "swish", True) else out


def causal_conv1d_fn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    conv_states: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens_cpu: Any,
    cache_indices: torch.Tensor | None = None,
    has_initial_state: torch.Tensor | None = None,
    activation: Any = "silu",
    pad_slot_id: int = -1,
    validate_data: bool = False,
    block_table: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Convolve `x` [dim, tokens] sequence by sequence; leaves the last inputs in `conv_states`."""
    _refuse("causal_conv1d_fn", block_table=block_table)
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
    _refuse(
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


# gated delta rule


def fused_gdn_gating(
    A_log: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    dt_bias: torch.Tensor,
    beta: float = 1.0,
    threshold: float = 20.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log decay and write strength, both [1, tokens, heads] float32."""
    step = F.softplus(a.float() + dt_bias.float(), beta, threshold)
    return (-A_log.float().exp() * step)[None], b.float().sigmoid()[None]


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
    _refuse("chunk_gated_delta_rule", head_first=head_first, only_reading=not inplace_update)
    heads = v.shape[2]
    queries, keys = (
        t[0].float().repeat_interleave(heads // t.shape[2], dim=1).contiguous() for t in (q, k)
    )
    if use_qk_l2norm_in_kernel:
        queries, keys = _normalized(queries), _normalized(keys)
    queries = queries * (k.shape[-1] ** -0.5 if scale is None else scale)
    values, decay, strength = v[0].float(), g[0].float().exp(), beta[0].float()
    out = torch.empty_like(v)
    states = []
    bounds = cu_seqlens.tolist()
    for i, slot in enumerate(initial_state_indices.tolist()):
        state = initial_state[slot].float()
        for t in range(bounds[i], bounds[i + 1]):
            if (t - bounds[i]) % CHUNK_TOKENS == 0:
                states.append(state)
            state, out_t = _delta_step(
                state, queries[t], keys[t], values[t], decay[t], strength[t]
            )
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
        t.view(len(t), -1, k_dim).repeat_interleave(heads * k_dim // key_dim, dim=1)
        for t in (q, k)
    )
    if use_qk_l2norm_in_kernel:
        q, k = _normalized(q), _normalized(k)
    q, v = q * scale, v.view(len(v), heads, v_dim)
    g, beta = fused_gdn_gating(A_log, a, b, dt_bias)
    decay, beta = g[0].exp(), beta[0].to(b.dtype).float()
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


# norms with a gate


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
    _refuse("rms_norm_gated", bias=bias, residual=residual, prenorm=prenorm)
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
    _refuse("layernorm_fn", bias=bias, mean=not is_rms_norm)
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
    _refuse("fused_sigmoid_mul", quant=quant)
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


# states kept for the prefix cache


def track_mamba_states_if_needed(
    conv_states: torch.Tensor,
    ssm_states: torch.Tensor,
    cache_indices: torch.Tensor,
    mamba_track_mask: torch.Tensor,
    mamba_track_indices: torch.Tensor,
    batch_size: int,
    check_freed_slots: bool = False,
) -> None:
    """Copy a layer's states of the rows in the mask to the slots that the tree will keep."""
    _track(
        (conv_states, ssm_states), 0, cache_indices, mamba_track_mask, mamba_track_indices,
        batch_size,
    )  # fmt: skip


def track_mamba_states_all_layers(
    conv_states_pool: torch.Tensor,
    ssm_states_pool: torch.Tensor,
    cache_indices: torch.Tensor,
    mamba_track_mask: torch.Tensor,
    mamba_track_indices: torch.Tensor,
    batch_size: int,
    check_freed_slots: bool = False,
) -> None:
    """The same for all layers at once, whose states lie behind one another."""
    _track(
        (conv_states_pool, ssm_states_pool), 1, cache_indices, mamba_track_mask,
        mamba_track_indices, batch_size,
    )  # fmt: skip


def _track(
    pools: tuple[torch.Tensor, ...],
    slot_dim: int,
    sources: torch.Tensor,
    mask: torch.Tensor,
    targets: torch.Tensor,
    batch_size: int,
) -> None:
    chosen = mask[:batch_size]
    src = sources[:batch_size][chosen].to(torch.int64)
    dst = targets[:batch_size][chosen].to(torch.int64)
    if not len(src):
        return
    for pool in pools:
        pool.index_copy_(slot_dim, dst, pool.index_select(slot_dim, src))


_MAMBA = "sglang.kernels.ops.mamba"
_FLA = "sglang.kernels.ops.attention.fla"
_LINEAR = "sglang.kernels.ops.attention.linear"
_PROJECTIONS = "sglang.kernels.ops.attention.triton_gdn_fused_proj"
_ELEMENTWISE = "sglang.kernels.ops.elementwise.elementwise"
#: What replaces what: SGLang's module, and the stand-in of the same name.
STAND_INS: tuple[tuple[str, Callable[..., Any]], ...] = (
    (f"{_MAMBA}.causal_conv1d_triton", causal_conv1d_fn),
    (f"{_MAMBA}.causal_conv1d_triton", causal_conv1d_update),
    (f"{_MAMBA}.mamba_state_scatter_triton", track_mamba_states_if_needed),
    (f"{_MAMBA}.mamba_state_scatter_triton", track_mamba_states_all_layers),
    (f"{_LINEAR}.fused_gdn_gating", fused_gdn_gating),
    (f"{_FLA}.chunk", chunk_gated_delta_rule),
    (f"{_FLA}.fused_recurrent", fused_recurrent_gated_delta_rule_packed_decode),
    (f"{_FLA}.fused_norm_gate", rms_norm_gated),
    (f"{_FLA}.layernorm_gated", layernorm_fn),
    (_ELEMENTWISE, fused_sigmoid_mul),
    (_ELEMENTWISE, fused_gate_sigmoid_mul),
    (_ELEMENTWISE, fused_gate_sigmoid_mul_add),
    (_PROJECTIONS, fused_qkvzba_split_reshape_cat),
    (_PROJECTIONS, fused_qkvzba_split_reshape_cat_contiguous),
)


def compute_linear_attention_on_a_cpu() -> None:
    """Put every stand-in in place, wherever SGLang has bound the original to a name."""
    originals = {}
    for module, stand_in in STAND_INS:
        original = getattr(importlib.import_module(module), stand_in.__name__)
        if original is not stand_in:
            originals[stand_in.__name__] = original, stand_in
    for module in [m for name, m in sys.modules.items() if name.startswith("sglang.")]:
        for name, (original, stand_in) in originals.items():
            if vars(module).get(name) is original:
                setattr(module, name, stand_in)
    torch.get_device_module = _device_module
    torch.Tensor.pin_memory = _pin_memory


_stock_device_module = torch.get_device_module


def _device_module(device: Any = None) -> Any:
    """PyTorch's build for CUDA names CUDA also where there is no GPU."""
    return torch.cpu if device is None else _stock_device_module(device)


def _pin_memory(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    """Without a GPU there is nothing to pin memory for; SGLang asks for it all the same."""
    return tensor
