# SPDX-License-Identifier: Apache-2.0
"""Plain-PyTorch pick of the prompt tokens to keep: SnapKV, arXiv 2404.14469, as LongFlow does."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def prompt_mass(
    q_window: torch.Tensor, k_earlier: torch.Tensor, scaling: float, logit_cap: float = 0.0
) -> torch.Tensor:
    """How much the last queries of a prompt attend to each earlier token.

    Softmax over the earlier keys only, summed over query heads and window queries.

    Parameters
    ----------
    q_window : torch.Tensor
        [window, num_q_heads, head_dim], the prompt's last queries after RoPE.
    k_earlier : torch.Tensor
        [earlier, num_kv_heads, head_dim], keys before the window, after RoPE.
    scaling, logit_cap : float
        As in attention.

    Returns
    -------
    torch.Tensor
        [earlier] float32.
    """
    _, q_heads, head_dim = q_window.shape
    kv_heads = k_earlier.shape[1]
    if q_heads % kv_heads:
        raise ValueError(f"num_q_heads={q_heads} is not a multiple of num_kv_heads={kv_heads}")
    group = q_heads // kv_heads
    total = torch.zeros(k_earlier.shape[0], dtype=torch.float32, device=k_earlier.device)
    # One KV head at a time bounds the float32 logits to [group * window, earlier].
    for head in range(kv_heads):
        queries = q_window[:, head * group : (head + 1) * group].float().reshape(-1, head_dim)
        logits = queries @ k_earlier[:, head].float().T * scaling
        if logit_cap > 0:
            logits = logit_cap * torch.tanh(logits / logit_cap)
        total += torch.softmax(logits, dim=-1).sum(dim=0)
    return total


def pool_scores(mass: torch.Tensor, pool_kernel: int = 5) -> torch.Tensor:
    """Scores of prompt tokens: `prompt_mass` average-pooled with zero padding.

    Parameters
    ----------
    mass : torch.Tensor
        [num_layers, earlier] float32.
    pool_kernel : int
        Odd width of the average pool.

    Returns
    -------
    torch.Tensor
        [num_layers, earlier] float32; higher is kept.
    """
    return F.avg_pool1d(mass, pool_kernel, stride=1, padding=pool_kernel // 2)


def prompt_scores(
    q_window: torch.Tensor,
    k_earlier: torch.Tensor,
    scaling: float,
    logit_cap: float = 0.0,
    pool_kernel: int = 5,
) -> torch.Tensor:
    """SnapKV's scores of one layer, [earlier] float32: `prompt_mass`, then `pool_scores`."""
    mass = prompt_mass(q_window, k_earlier, scaling, logit_cap)
    return pool_scores(mass[None], pool_kernel)[0]


def top_positions(scores: torch.Tensor, count: int, always_first: int = 0) -> torch.Tensor:
    """Positions of the `count` highest scores in ascending order, the first ones always among them.

    Parameters
    ----------
    scores : torch.Tensor
        [..., n] float32.
    count : int
        How many to keep, ``always_first <= count <= n``.
    always_first : int
        This many positions from 0 are kept whatever their score.

    Returns
    -------
    torch.Tensor
        [..., count] int64.
    """
    if not always_first <= count <= scores.shape[-1]:
        raise ValueError(
            f"count={count}: expected {always_first} <= count <= {scores.shape[-1]} scores"
        )
    if always_first:
        scores = scores.clone()
        scores[..., :always_first] = torch.inf
    # Each row's order among equals is topk's; the sort is only by position.
    return torch.topk(scores, count, sorted=False).indices.sort().values
