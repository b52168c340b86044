"""Plain-PyTorch score of LongFlow (arXiv 2603.11504, eq. 6)."""

from __future__ import annotations

import torch


def attention_weights(
    q: torch.Tensor, k: torch.Tensor, scaling: float, logit_cap: float = 0.0
) -> torch.Tensor:
    """Softmax of one query per row over all slots of the row.

    Parameters
    ----------
    q : torch.Tensor
        [n, num_q_heads, head_dim], after RoPE.
    k : torch.Tensor
        [n, kv_len, num_kv_heads, head_dim], after RoPE; every slot is attended.
    scaling : float
        Factor on the logits.
    logit_cap : float
        Soft cap ``cap * tanh(logit / cap)``; 0 is none.

    Returns
    -------
    torch.Tensor
        [n, num_kv_heads, group, kv_len] float32; query head ``h * group + g`` is at ``[:, h, g]``.
    """
    rows, q_heads, head_dim = q.shape
    kv_heads = k.shape[2]
    if q_heads % kv_heads:
        raise ValueError(f"num_q_heads={q_heads} is not a multiple of num_kv_heads={kv_heads}")
    grouped = q.float().view(rows, kv_heads, q_heads // kv_heads, head_dim)
    logits = torch.matmul(grouped, k.float().permute(0, 2, 3, 1)) * scaling
    if logit_cap > 0:
        logits = logit_cap * torch.tanh(logits / logit_cap)
    return torch.softmax(logits, dim=-1)


def removal_scores(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, logit_cap: float = 0.0
) -> torch.Tensor:
    """Mean over query heads and channels of ``|alpha_i * v_i|`` for every slot of every row.

    The slot with the lowest score is the one whose removal changes the attention output least
    under the paper's approximations.

    Parameters
    ----------
    q, k, scaling, logit_cap
        As in `attention_weights`.
    v : torch.Tensor
        [n, kv_len, num_kv_heads, v_head_dim].

    Returns
    -------
    torch.Tensor
        [n, kv_len] float32, all >= 0; lowest is least useful.
    """
    weights = attention_weights(q, k, scaling, logit_cap).sum(dim=2)  # [n, kv_heads, kv_len]
    norms = v.float().abs().sum(dim=-1).permute(0, 2, 1)  # [n, kv_heads, kv_len]
    return (weights * norms).sum(dim=1) / (q.shape[1] * v.shape[-1])
