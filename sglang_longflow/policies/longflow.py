# SPDX-License-Identifier: Apache-2.0
"""LongFlow as published: the current query alone decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sglang_longflow.policies.base import Policy


@dataclass(frozen=True)
class LongFlow(Policy):
    """Overwrite the slot that contributes least to this step's attention output.

    Source: arXiv 2603.11504, eq. 6: arg-min over the whole row, the newest token included, of the
    mean over query heads and channels of ``|alpha_i * v_i|``; one victim per (layer, request).
    A prompt over budget - 1 is cut by SnapKV's pick (arXiv 2404.14469): window 32, average pool 5.

    Deviations from the authors' release: scores stay in float32 (theirs are summed in the query's
    dtype with atomics), equal scores go to the lowest row index, and
    ``protect_sink_tokens`` / ``protect_recent_tokens`` exist, both 0 as published.
    """

    name: ClassVar[str] = "longflow"
    ranks_by: ClassVar[str | None] = "removal"
