# SPDX-License-Identifier: Apache-2.0
"""TOVA: the slot that the current query looks at least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sglang_longflow.policies.base import Policy


@dataclass(frozen=True)
class Tova(Policy):
    """Overwrite the slot with the least attention of this step's query, the mean over all heads.

    Source: arXiv 2401.06104. Equal shares go to the lowest row index. Deviation: a prompt over
    budget - 1 is cut by SnapKV's pick (window 32, average pool 5) as under `longflow`, where the
    paper drops one token at a time by the attention of each prompt token; so the two policies
    differ in decoding only.
    """

    name: ClassVar[str] = "tova"
    ranks_by: ClassVar[str | None] = "attention"
