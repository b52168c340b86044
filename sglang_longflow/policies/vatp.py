# SPDX-License-Identifier: Apache-2.0
"""VATP: attention weighed by the size of the value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sglang_longflow.policies.h2o import H2O
from sglang_longflow.policies.rows import FullRows

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class VATP(H2O):
    """H2O's accumulated attention times the L1 norm of the value; the first tokens always stay.

    Source: arXiv 2406.12335, eq. for ``I = S * ||v||_1`` over H2O's S, with its first
    ``first_tokens`` (20) protected and H2O's recent half.

    Deviations: those of `h2o`; and since the paper does not define grouped heads, S is the mean
    over query heads and the norm the mean over KV heads.
    """

    name: ClassVar[str] = "vatp"

    first_tokens: int = 20

    @property
    def min_budget_tokens(self) -> int:
        return max(super().min_budget_tokens, 2 * self.first_tokens_kept + 4)

    @property
    def first_tokens_kept(self) -> int:
        return max(self.protect_sink_tokens, self.first_tokens)

    def heavy(self, rows: FullRows) -> torch.Tensor:
        norms = rows.values.abs().sum(dim=-1).mean(dim=-1)
        return super().heavy(rows) * norms
