# SPDX-License-Identifier: Apache-2.0
"""What all kernels do to a logit."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def capped_base2(logits, logit_cap, HAS_CAP: tl.constexpr):
    """Soft cap, then base 2, for `exp2`. ``2 * sigmoid(2x) - 1`` is tanh."""
    if HAS_CAP:
        logits = logit_cap * (2.0 * tl.sigmoid(2.0 * logits / logit_cap) - 1.0)
    return logits * LOG2_E
