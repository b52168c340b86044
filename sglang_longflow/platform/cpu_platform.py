# SPDX-License-Identifier: Apache-2.0
"""The platform class; imported by SGLang only where `cpu.activate` asked for it."""

from __future__ import annotations

from typing import Any

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.interface import PlatformEnum, SRTPlatform
from torch.profiler import ProfilerActivity


class LongFlowCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """SGLang on a CPU in plain PyTorch: attention ``torch_native``, SGLang's own pools."""

    _enum = PlatformEnum.OOT

    def is_pin_memory_available(self, device: Any = None) -> bool:
        return False

    def get_device(self, device_id: int = 0) -> str:
        """A name: SGLang takes what this returns for the value of --device."""
        return "cpu"

    def get_torch_profiler_activity_str(self) -> str:
        """SGLang asks platforms of others for their own; without one /start_profile ends it."""
        return "CPU"

    def get_torch_profiler_activity(self) -> ProfilerActivity:
        return ProfilerActivity.CPU

    def init_backend(self) -> None:
        from sglang_longflow.platform.cpu_experts import add_squared_relu_to_experts
        from sglang_longflow.platform.cpu_grammar import apply_reasoners_masks_on_a_cpu
        from sglang_longflow.platform.cpu_linear import compute_linear_attention_on_a_cpu
        from sglang_longflow.platform.cpu_whole_norm import normalise_whole_tokens_on_a_cpu

        apply_reasoners_masks_on_a_cpu()
        compute_linear_attention_on_a_cpu()
        add_squared_relu_to_experts()
        normalise_whole_tokens_on_a_cpu()

    def support_mamba_cache_extra_buffer(self) -> bool:
        return True

    def get_default_attention_backend(self) -> str:
        return "torch_native"
