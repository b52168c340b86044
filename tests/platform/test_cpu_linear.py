# SPDX-License-Identifier: Apache-2.0
"""The stand-ins for SGLang's kernels of recurrent layers, against Transformers' own PyTorch code.

Whole models are compared in tests/e2e/test_hybrid_tokens.py.
"""

from __future__ import annotations

import inspect
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from sglang_longflow.hooks.manifest import PATCHES
from sglang_longflow.platform import cpu_delta_rule, cpu_gates, cpu_linear, cpu_mamba2, cpu_track
from sglang_longflow.platform import cpu_short_conv as conv

LENGTHS = (5, 70, 1, 64)
CLOSE = dict(rtol=2e-4, atol=2e-5)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def bounds(lengths) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def delta_inputs(tokens: int, heads: int = 4, key_heads: int = 2, k: int = 16, v: int = 8):
    q, key = torch.randn(2, tokens, key_heads, k).unbind()
    value, a, b = torch.randn(tokens, heads, v), *torch.randn(2, tokens, heads).unbind()
    a_log, dt_bias = torch.rand(heads), torch.randn(heads)
    g, beta = cpu_delta_rule.fused_gdn_gating(a_log, a, b, dt_bias)
    return q, key, value, a, b, a_log, dt_bias, g, beta


def prefill(q, key, value, g, beta, states, slots, lengths):
    return cpu_delta_rule.chunk_gated_delta_rule(
        q[None], key[None], value[None], g, beta,
        initial_state=states, initial_state_indices=slots, cu_seqlens=bounds(lengths),
        use_qk_l2norm_in_kernel=True,
    )  # fmt: skip


def of_transformers(q, key, value, g, beta, state):
    """One sequence; the state is the transpose of SGLang's."""
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    wide = [t.repeat_interleave(value.shape[1] // q.shape[1], dim=1)[None] for t in (q, key)]
    out, last = torch_chunk_gated_delta_rule(
        *wide, value[None], g, beta, initial_state=state.mT[None], output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )  # fmt: skip
    return out[0], last[0].mT


def test_delta_rule_equals_transformers():
    q, key, value, *_, g, beta = delta_inputs(sum(LENGTHS))
    states = torch.randn(9, 4, 8, 16)
    before, slots = states.clone(), torch.tensor([3, 7, 1, 5])
    out, none, every64 = prefill(q, key, value, g, beta, states, slots, LENGTHS)
    assert none is None
    starts = bounds(LENGTHS).tolist()
    for (start, end), slot in zip(pairwise(starts), slots, strict=True):
        part = slice(start, end)
        wanted, last = of_transformers(
            q[part], key[part], value[part], g[:, part], beta[:, part], before[slot]
        )
        torch.testing.assert_close(out[0, part], wanted, **CLOSE)
        torch.testing.assert_close(states[slot], last, **CLOSE)
    others = [i for i in range(9) if i not in slots]
    assert torch.equal(states[others], before[others])
    # Of each sequence the state before it, and of the one of 70 that after 64 tokens.
    assert every64.shape == (1, 5, 4, 8, 16)
    assert torch.equal(every64[0, [0, 1, 3, 4]], before[slots])
    _, after64 = of_transformers(
        q[5:69], key[5:69], value[5:69], g[:, 5:69], beta[:, 5:69], before[7]
    )
    torch.testing.assert_close(every64[0, 2], after64, **CLOSE)


def test_delta_rule_does_not_depend_on_chunks_nor_on_how_many_share_a_batch():
    tokens, slots = 40, torch.tensor([2])
    q, key, value, a, b, a_log, dt_bias, g, beta = delta_inputs(tokens)
    whole, apart = torch.zeros(2, 4, 4, 8, 16).unbind()
    out, _, _ = prefill(q, key, value, g, beta, whole, slots, [tokens])
    seen = []
    for start, end in ((0, 13), (13, 39)):
        part = slice(start, end)
        given = (q[part], key[part], value[part], g[:, part], beta[:, part])
        seen.append(prefill(*given, apart, slots, [end - start])[0][0])
    mixed = torch.cat([q[39:].flatten(1), key[39:].flatten(1), value[39:].flatten(1)], dim=1)
    last = torch.empty(2, 1, 4, 8)
    cpu_delta_rule.fused_recurrent_gated_delta_rule_packed_decode(
        mixed.expand(2, -1), a[39:].expand(2, -1), b[39:].expand(2, -1), a_log, dt_bias, 16**-0.5,
        apart, last, torch.tensor([-1, 2]), use_qk_l2norm_in_kernel=True,
    )  # fmt: skip
    assert torch.equal(torch.cat([*seen, last[1]]), out[0])
    assert torch.equal(apart, whole) and not last[0].any()


@pytest.mark.parametrize("bias", [None, torch.randn(6)])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_convolution_equals_pytorch(bias, activation):
    weight, x = torch.randn(6, 4), torch.randn(6, sum(LENGTHS))
    states = torch.randn(5, 6, 3)
    before, slots = states.clone(), torch.tensor([4, 0, 2, 1])
    resumes = torch.tensor([True, False, True, False])
    out = conv.causal_conv1d_fn(
        x, weight, bias, states, bounds(LENGTHS), None, slots, resumes, activation
    )
    for i, (start, end) in enumerate(pairwise(bounds(LENGTHS).tolist())):
        given = before[slots[i]] if resumes[i] else torch.zeros(6, 3)
        window = torch.cat([given, x[:, start:end]], dim=1)
        wanted = F.conv1d(window[None], weight[:, None], bias, groups=6)[0]
        wanted = F.silu(wanted) if activation else wanted
        torch.testing.assert_close(out[:, start:end], wanted, **CLOSE)
        assert torch.equal(states[slots[i]], window[:, -3:])
    assert torch.equal(states[3], before[3])
    # The same, a token at a time, from the states before.
    stepped = before.clone()
    stepped[slots[~resumes]] = 0
    start, end = bounds(LENGTHS).tolist()[1:3]
    for t in range(start, end):
        pair = torch.stack([torch.zeros(6), x[:, t]])
        got = conv.causal_conv1d_update(
            pair, stepped, weight, bias, activation, conv_state_indices=torch.tensor([-1, 0])
        )
        assert torch.equal(got[1], out[:, t]) and not got[0].any()
    assert torch.equal(stepped[0], states[0])


def test_mamba2_is_its_recurrence_and_decode_goes_on_from_prefill():
    """state = exp(dt A) state + dt x B; y = C state + D x, dt = softplus(dt + bias): in float64."""
    heads, groups, size, n, tokens = 4, 2, 8, 16, sum(LENGTHS)
    x, dt = torch.randn(tokens, heads, size), torch.randn(tokens, heads)
    a, d, bias = -torch.rand(heads), torch.randn(heads), torch.randn(heads)
    b, c = torch.randn(2, tokens, groups, n).unbind()
    initial = torch.randn(len(LENGTHS), heads, size, n)
    out = torch.empty(1, tokens, heads, size)
    at = bounds(LENGTHS)
    grid, after, tracked = cpu_mamba2.mamba_chunk_scan_combined(
        x[None], dt[None], a, b[None], c[None], 64, D=d, dt_bias=bias, initial_states=initial,
        cu_seqlens=at, dt_softplus=True, out=out, return_varlen_states=True,
        return_track_states=True, state_dtype=torch.float32,
        track_seq_idx=torch.tensor([1, 3]), track_end_locs=torch.tensor([30, int(at[-1])]),
    )  # fmt: skip
    wanted_grid = {}
    for i, (start, end) in enumerate(pairwise(at.tolist())):
        state = initial[i].double()
        for t in range(start, end):
            if t % 64 == 0:
                wanted_grid[t // 64] = state
            if t == 30:
                torch.testing.assert_close(tracked[0], state.float(), **CLOSE)
            step = F.softplus(dt[t].double() + bias.double())
            wide = (step[:, None] * x[t])[:, :, None] * b[t].repeat_interleave(2, 0)[:, None]
            state = state * torch.exp(step * a)[:, None, None] + wide
            y = (state * c[t].repeat_interleave(2, 0)[:, None]).sum(-1) + d[:, None] * x[t]
            torch.testing.assert_close(out[0, t], y.float(), **CLOSE)
        torch.testing.assert_close(after[i], state.float(), **CLOSE)
    torch.testing.assert_close(grid[0], torch.stack(list(wanted_grid.values())).float(), **CLOSE)
    assert torch.equal(tracked[1], after[3])
    # The second sequence's last token, as a decode step, from the state that was tracked before it.
    state = torch.zeros(3, heads, size, n)
    state[2] = tracked[0]
    for t in range(30, int(at[2])):
        got = torch.empty(2, heads, size)
        pair = [v[t : t + 1].expand(2, *v.shape[1:]) for v in (x, b, c)]
        cpu_mamba2.selective_state_update(
            state, pair[0], dt[t, :, None].expand(2, heads, size),
            a[:, None, None].expand(heads, size, n), pair[1], pair[2],
            d[:, None].expand(heads, size), dt_bias=bias[:, None].expand(heads, size),
            dt_softplus=True, state_batch_indices=torch.tensor([2, -1]), out=got,
        )  # fmt: skip
        assert torch.equal(got[0], out[0, t]) and not got[1].any()
    assert torch.equal(state[2], after[1]) and not state[:2].any()


def test_projections_are_split_as_by_transformers():
    """Qwen3-Next's lie key head by key head, Qwen3.5's all of a kind together."""
    n, key_heads, heads, k, v = 3, 2, 4, 5, 7
    q, key = torch.randn(2, n, key_heads, k).unbind()
    value, z = torch.randn(2, n, heads, v).unbind()
    b, a = torch.randn(2, n, heads).unbind()
    wanted = (torch.cat([t.flatten(1) for t in (q, key, value)], 1), z, b, a)
    kinds = [t.reshape(n, key_heads, -1) for t in (q, key, value, z)]
    pair = torch.cat([t.reshape(n, key_heads, -1) for t in (b, a)], 2).flatten(1)
    by_head = cpu_delta_rule.fused_qkvzba_split_reshape_cat(
        torch.cat(kinds, 2).flatten(1), pair, key_heads, heads, k, v
    )
    together = cpu_delta_rule.fused_qkvzba_split_reshape_cat_contiguous(
        torch.cat([t.flatten(1) for t in (q, key, value, z)], 1), torch.cat([b, a], 1),
        key_heads, heads, k, v,
    )  # fmt: skip
    for got in (by_head, together):
        assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))


@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
def test_norms_with_a_gate(activation):
    x, z, weight = torch.randn(6, 8), torch.randn(6, 8), torch.randn(8)
    gate = F.silu(z) if activation == "silu" else z.sigmoid()
    wanted = F.rms_norm(x, (8,), weight, 1e-6) * gate
    torch.testing.assert_close(cpu_gates.rms_norm_gated(x, z, weight, None, activation), wanted)
    rms = dict(eps=1e-6, is_rms_norm=True, activation=activation)
    torch.testing.assert_close(cpu_gates.layernorm_fn(x, weight, None, z, **rms), wanted)
    after = cpu_gates.layernorm_fn(x, weight, None, z, group_size=4, norm_before_gate=False, **rms)
    groups = F.rms_norm((x * gate).view(6, 2, 4), (4,), None, 1e-6).view(6, 8) * weight
    torch.testing.assert_close(after, groups)


def test_products_with_a_gate():
    x, w, shared, total = torch.randn(3, 8), torch.randn(8), torch.randn(3, 8), torch.randn(3, 8)
    wanted = shared * (x @ w).sigmoid()[:, None]
    torch.testing.assert_close(cpu_gates.fused_gate_sigmoid_mul(x, w, shared), wanted)
    torch.testing.assert_close(
        total.clone() + wanted, _added(cpu_gates.fused_gate_sigmoid_mul_add, x, w, shared, total)
    )
    gate = torch.randn(3, 2, 4)
    out = cpu_gates.fused_sigmoid_mul(shared, gate, inplace=True)
    assert out is shared and out.shape == (3, 8)


def _added(add, x, w, shared, total):
    assert add(x, w, shared, total) is None
    return total


def test_a_product_in_another_dtype():
    a, b = torch.randn(3, 4).bfloat16(), torch.randn(4, 5).bfloat16()
    assert cpu_linear.multiply_into_another_dtype() is cpu_linear.multiply_into_another_dtype()
    torch.testing.assert_close(torch.mm(a, b, out_dtype=torch.float32), a.float() @ b.float())


def test_tracked_states_go_to_their_slots_and_nowhere_else():
    pools = torch.randn(2, 6, 3, 4), torch.randn(2, 6, 2, 2, 2)
    before = [pool.clone() for pool in pools]
    src, mask = torch.tensor([1, 2, 3]), torch.tensor([True, False, True])
    dst = torch.tensor([5, 4, 0])
    cpu_track.track_mamba_states_all_layers(*pools, src, mask, dst, 3)
    for pool, old in zip(pools, before, strict=True):
        assert torch.equal(pool[:, [5, 0]], old[:, [1, 3]])
        assert torch.equal(pool[:, 1:5], old[:, 1:5])
    one = before[0][0].clone(), before[1][0].clone()
    cpu_track.track_mamba_states_if_needed(*one, src, mask, dst, 3)
    assert torch.equal(one[0], pools[0][0]) and torch.equal(one[1], pools[1][0])


def test_what_is_not_known_is_refused():
    with pytest.raises(NotImplementedError, match="quant is not supported on the CPU platform"):
        cpu_gates.fused_sigmoid_mul(torch.ones(1, 2), torch.ones(1, 2), quant=True)
    with pytest.raises(NotImplementedError, match="tokens is not supported"):
        conv.causal_conv1d_update(torch.ones(1, 2, 3), torch.ones(1, 2, 3), torch.ones(2, 4))


def test_every_stand_in_is_a_row_of_the_manifest_with_its_own_parameters():
    made_by = "platform.cpu_linear:compute_linear_attention_on_a_cpu"
    made = {patch.target: patch for patch in PATCHES if patch.made_by == made_by}
    targets = {f"{module}.{one.__name__}" for module, one in cpu_linear.STAND_INS}
    assert {t for t in targets if "kernels" in t} == set(made)
    for module, one in cpu_linear.STAND_INS:
        if patch := made.get(f"{module}.{one.__name__}"):
            names = tuple(inspect.signature(one).parameters)
            assert names[: len(patch.parameters)] == patch.parameters
