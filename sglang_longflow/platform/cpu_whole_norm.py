# SPDX-License-Identifier: Apache-2.0
"""MiniMax-M2's norm on the CPU platform: over all heads of a token's queries, or keys, at once."""

from __future__ import annotations

import torch


def rms_sumsq_serial(x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
    """[2 * tokens], float32: sums of squares of each token of `x1`, then of `x2`.

    Both are [tokens, channels of this rank]; ranks add theirs up before `rms_apply_serial`.
    """
    return torch.cat([x.float().square().sum(-1) for x in (x1, x2)])


def rms_apply_serial(
    x1: torch.Tensor,
    x2: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    sum_sq: torch.Tensor,
    tp_world: int = 1,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x1` and `x2` over the root of their mean squares, by the weights; in their own dtypes.

    ``sum_sq`` is what `rms_sumsq_serial` gave, of all `tp_world` ranks together.
    """
    sums = sum_sq.view(2, x1.shape[0], 1)

    def normed(x: torch.Tensor, weight: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        mean = total / (x.shape[1] * tp_world)
        return (x.float() * torch.rsqrt(mean + eps) * weight.float()).to(x.dtype)

    return normed(x1, w1, sums[0]), normed(x2, w2, sums[1])


def normalise_whole_tokens_on_a_cpu() -> None:
    """Put both in the place of the Triton kernels that SGLang's model calls."""
    from sglang.srt.models import minimax_m2

    for stand_in in (rms_sumsq_serial, rms_apply_serial):
        setattr(minimax_m2, stand_in.__name__, stand_in)
