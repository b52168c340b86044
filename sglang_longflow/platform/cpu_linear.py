# SPDX-License-Identifier: Apache-2.0
"""Linear attention on the CPU platform: SGLang's Triton kernels in plain PyTorch.

A stand-in has the parameters and effects of what it replaces. What SGLang offers and no model of
the CPU platform uses is refused, not ignored. A token's state depends on the tokens before it in
its sequence alone, to the last bit: not on its batch, nor, where states are kept in float32, on how
a prefill was cut into chunks. (Those of convolutions SGLang keeps in bfloat16, unless
SGLANG_MAMBA_CONV_DTYPE says otherwise.) Exponentials are taken in float64 for it: in float32 their
last bit depends on the tensor's size.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch

from sglang_longflow.platform import (
    cpu_delta_rule,
    cpu_gates,
    cpu_mamba2,
    cpu_short_conv,
    cpu_track,
)

_OPS = "sglang.kernels.ops"
_CONV_WRAPPER = "sglang.srt.layers.attention.mamba.causal_conv1d"
_MIXER = "sglang.srt.layers.attention.mamba.mamba"
#: What replaces what: SGLang's module, and the stand-in of the same name.
STAND_INS: tuple[tuple[str, Callable[..., Any]], ...] = (
    (f"{_OPS}.mamba.causal_conv1d_triton", cpu_short_conv.causal_conv1d_fn),
    (f"{_OPS}.mamba.causal_conv1d_triton", cpu_short_conv.causal_conv1d_update),
    (_CONV_WRAPPER, cpu_short_conv.causal_conv1d_fn),
    (_CONV_WRAPPER, cpu_short_conv.causal_conv1d_update),
    (f"{_OPS}.mamba.triton_ops", cpu_mamba2.mamba_chunk_scan_combined),
    (f"{_OPS}.mamba.triton_ops", cpu_mamba2.selective_state_update),
    (f"{_OPS}.mamba.mamba_state_scatter_triton", cpu_track.track_mamba_states_if_needed),
    (f"{_OPS}.mamba.mamba_state_scatter_triton", cpu_track.track_mamba_states_all_layers),
    (f"{_OPS}.attention.linear.fused_gdn_gating", cpu_delta_rule.fused_gdn_gating),
    (f"{_OPS}.attention.fla.chunk", cpu_delta_rule.chunk_gated_delta_rule),
    (
        f"{_OPS}.attention.fla.fused_recurrent",
        cpu_delta_rule.fused_recurrent_gated_delta_rule_packed_decode,
    ),
    (
        f"{_OPS}.attention.triton_gdn_fused_proj",
        cpu_delta_rule.fused_qkvzba_split_reshape_cat,
    ),
    (
        f"{_OPS}.attention.triton_gdn_fused_proj",
        cpu_delta_rule.fused_qkvzba_split_reshape_cat_contiguous,
    ),
    (f"{_OPS}.attention.fla.fused_norm_gate", cpu_gates.rms_norm_gated),
    (f"{_OPS}.attention.fla.layernorm_gated", cpu_gates.layernorm_fn),
    (f"{_OPS}.elementwise.elementwise", cpu_gates.fused_sigmoid_mul),
    (f"{_OPS}.elementwise.elementwise", cpu_gates.fused_gate_sigmoid_mul),
    (f"{_OPS}.elementwise.elementwise", cpu_gates.fused_gate_sigmoid_mul_add),
)
#: Names that SGLang binds on its own platforms alone, and uses on all.
UNBOUND: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    (_MIXER, "causal_conv1d_fn", cpu_short_conv.causal_conv1d_fn),
    (_MIXER, "causal_conv1d_fn_triton", cpu_short_conv.causal_conv1d_fn),
    (_MIXER, "causal_conv1d_update", cpu_short_conv.causal_conv1d_update),
    (_MIXER, "causal_conv1d_update_triton", cpu_short_conv.causal_conv1d_update),
)


def compute_linear_attention_on_a_cpu() -> None:
    """Put every stand-in in place, wherever SGLang has bound the original to a name."""
    for module_name, stand_in in STAND_INS:
        name = stand_in.__name__
        original = getattr(importlib.import_module(module_name), name)
        for module in [m for key, m in sys.modules.items() if key.startswith("sglang.")]:
            for bound, value in list(vars(module).items()):
                if value is original:
                    setattr(module, bound, stand_in)
    for module_name, name, stand_in in UNBOUND:
        setattr(importlib.import_module(module_name), name, stand_in)
    _do_without_cuda()
    multiply_into_another_dtype()


@functools.cache  # which keeps it: what a library registers ends with it
def multiply_into_another_dtype() -> torch.library.Library:
    """Give PyTorch a kernel that it has for GPUs alone: ``torch.mm(a, b, out_dtype=...)``.

    Nemotron-H's router calls it.
    """

    def mm(a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
        return a.to(out_dtype) @ b.to(out_dtype)

    library = torch.library.Library("aten", "IMPL")
    library.impl("mm.dtype", mm, "CPU")
    return library


def _do_without_cuda() -> None:
    """PyTorch's build for CUDA names CUDA, and pins memory with its driver, also without a GPU."""
    stock_device_module = torch.get_device_module

    @functools.wraps(stock_device_module)
    def device_module(device: Any = None) -> Any:
        return torch.cpu if device is None else stock_device_module(device)

    def pin_memory(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
        return tensor

    torch.get_device_module = device_module
    torch.Tensor.pin_memory = pin_memory
