# SPDX-License-Identifier: Apache-2.0
"""Kernels of SGLang that the CPU platform replaces: each target with its first parameters."""

from __future__ import annotations

_OPS = "sglang.kernels.ops"
_CONV = "x weight bias conv_states query_start_loc"
_CONV_STEP = "x conv_state weight bias activation cache_seqlens conv_state_indices"
_TRACK = "cache_indices mamba_track_mask mamba_track_indices batch_size check_freed_slots"
_SSD = "x dt A B C chunk_size D z dt_bias initial_states seq_idx chunk_indices chunk_offsets"
_QKVZ = "mixed_qkvz mixed_ba num_heads_qk num_heads_v head_qk head_v"
#: Of hybrid models.
LINEAR_KERNELS: tuple[tuple[str, str], ...] = (
    (f"{_OPS}.mamba.causal_conv1d_triton.causal_conv1d_fn", _CONV),
    (f"{_OPS}.mamba.causal_conv1d_triton.causal_conv1d_update", _CONV_STEP),
    (f"{_OPS}.mamba.triton_ops.mamba_chunk_scan_combined", _SSD),
    (f"{_OPS}.mamba.triton_ops.selective_state_update", "state x dt A B C D z dt_bias dt_softplus"),
    (
        f"{_OPS}.mamba.mamba_state_scatter_triton.track_mamba_states_if_needed",
        f"conv_states ssm_states {_TRACK}",
    ),
    (
        f"{_OPS}.mamba.mamba_state_scatter_triton.track_mamba_states_all_layers",
        f"conv_states_pool ssm_states_pool {_TRACK}",
    ),
    (f"{_OPS}.attention.linear.fused_gdn_gating.fused_gdn_gating", "A_log a b dt_bias"),
    (
        f"{_OPS}.attention.fla.chunk.chunk_gated_delta_rule",
        "q k v g beta scale initial_state initial_state_indices cu_seqlens head_first",
    ),
    (
        f"{_OPS}.attention.fla.fused_recurrent.fused_recurrent_gated_delta_rule_packed_decode",
        "mixed_qkv a b A_log dt_bias scale initial_state out ssm_state_indices",
    ),
    (f"{_OPS}.attention.triton_gdn_fused_proj.fused_qkvzba_split_reshape_cat", _QKVZ),
    (f"{_OPS}.attention.triton_gdn_fused_proj.fused_qkvzba_split_reshape_cat_contiguous", _QKVZ),
    (
        f"{_OPS}.attention.fla.fused_norm_gate.rms_norm_gated",
        "x g weight bias activation residual prenorm residual_in_fp32 eps",
    ),
    (
        f"{_OPS}.attention.fla.layernorm_gated.layernorm_fn",
        "x weight bias z eps group_size norm_before_gate is_rms_norm activation",
    ),
    (f"{_OPS}.elementwise.elementwise.fused_sigmoid_mul", "attn_output gate inplace quant"),
    (
        f"{_OPS}.elementwise.elementwise.fused_gate_sigmoid_mul",
        "hidden_states gate_weight shared_output",
    ),
    (
        f"{_OPS}.elementwise.elementwise.fused_gate_sigmoid_mul_add",
        "hidden_states gate_weight shared_output final_hidden_states",
    ),
)
#: Of MiniMax-M2.
NORM_KERNELS: tuple[tuple[str, str], ...] = (
    ("sglang.srt.models.minimax_m2.rms_sumsq_serial", "x1 x2"),
    ("sglang.srt.models.minimax_m2.rms_apply_serial", "x1 x2 w1 w2 sum_sq tp_world eps"),
)
