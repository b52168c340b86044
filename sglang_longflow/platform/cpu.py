# SPDX-License-Identifier: Apache-2.0
"""A CPU platform for SGLang, so that the whole server runs on a machine without a GPU.

For trying it out and for tests: every operator runs its plain PyTorch form. Never active where CUDA
is available.
"""

from __future__ import annotations

import torch


def activate() -> str | None:
    """Entry point (group ``sglang.srt.platforms``): the platform's path, or None to stay out."""
    import os

    if torch.cuda.is_available() or os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
        return None
    return "sglang_longflow.platform.cpu_platform.LongFlowCpuPlatform"
