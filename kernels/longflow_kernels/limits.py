# SPDX-License-Identifier: Apache-2.0
"""Numbers of the kernels that settings are judged by. No torch, no Triton."""

from __future__ import annotations

#: Sizes of a head, of K and of V, that the decode kernel takes.
HEAD_DIMS = (64, 96, 128, 256)
#: Most query heads per KV head.
MAX_GROUP = 16
#: The tokens written last that a full row's others are compared with, and the overwrites between
#: two comparisons.
COMPARED_TOKENS = 16
