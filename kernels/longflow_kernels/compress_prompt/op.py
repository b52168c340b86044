"""SnapKV's scores of a prompt whose keys lie in scattered slots."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton

from longflow_kernels.attend_score_evict.op import HEAD_DIMS
from longflow_kernels.compress_prompt.kernel import mass_kernel, normaliser_kernel

#: Enough chunks of keys to fill a GPU, and few enough to add up at once.
MAX_CHUNKS = 32


def paged_prompt_scores(
    q_window: torch.Tensor,
    k_cache: torch.Tensor,
    slots: torch.Tensor,
    scaling: float,
    logit_cap: float = 0.0,
    pool_kernel: int = 5,
    k_scale: float = 1.0,
) -> torch.Tensor:
    """`prompt_scores` with the keys where they are: no gather, no score matrix.

    Reads the keys twice: once for the softmax normalisers, once for the sums.

    Parameters
    ----------
    q_window : torch.Tensor
        [window, num_q_heads, head_dim] bfloat16, float16 or float32, after RoPE.
    k_cache : torch.Tensor
        [num_slots, num_kv_heads, head_dim]; q's dtype or float8_e4m3fn.
    slots : torch.Tensor
        [earlier] int32 or int64, the slots of the tokens before the window, in order.
    scaling, logit_cap : float
        As in attention.
    pool_kernel : int
        Odd width of the average pool.
    k_scale : float
        Factor of the cache's values (fp8).

    Returns
    -------
    torch.Tensor
        [earlier] float32; higher is kept.

    Raises
    ------
    ValueError
        A shape or dtype that the kernels do not take.
    """
    window, num_q_heads, head_dim = q_window.shape
    num_kv_heads = k_cache.shape[1]
    group, rest = divmod(num_q_heads, num_kv_heads)
    if rest:
        raise ValueError(
            f"num_q_heads={num_q_heads} is not a multiple of num_kv_heads={num_kv_heads}"
        )
    if head_dim not in HEAD_DIMS or k_cache.shape[2] != head_dim:
        raise ValueError(
            f"head_dim={head_dim} with keys of {k_cache.shape[2]}: expected one of {HEAD_DIMS}"
        )
    if k_cache.dtype not in (q_window.dtype, torch.float8_e4m3fn):
        raise ValueError(f"k_cache is {k_cache.dtype}: expected {q_window.dtype} or float8_e4m3fn")
    if q_window.stride()[1:] != (head_dim, 1) or k_cache.stride()[1:] != (head_dim, 1):
        raise ValueError("q_window and k_cache must be contiguous within a token")
    num_keys, rows = slots.shape[0], group * window
    block_m, block_n = 64, 64 if head_dim <= 128 else 32
    blocks = triton.cdiv(num_keys, block_n)
    chunk_keys = triton.cdiv(blocks, MAX_CHUNKS) * block_n
    chunks = triton.cdiv(num_keys, chunk_keys)
    device = q_window.device
    lse = torch.empty(num_kv_heads, rows, chunks, dtype=torch.float32, device=device)
    mass = torch.empty(num_keys, dtype=torch.float32, device=device)
    shape = dict(
        GROUP=group,
        ROWS=rows,
        HEAD_DIM=head_dim,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_D=triton.next_power_of_2(head_dim),
        HAS_CAP=logit_cap > 0,
        DOT_PRECISION="ieee",
        num_warps=4,
    )
    strides = (q_window.stride(0), k_cache.stride(0))
    scale = scaling * k_scale
    normaliser_kernel[(triton.cdiv(rows, block_m), num_kv_heads, chunks)](
        q_window, k_cache, slots, lse, num_keys, chunk_keys, scale, logit_cap, *strides, **shape
    )
    # log2-sum-exp2 over the chunks.
    peak = lse.amax(dim=2, keepdim=True)
    lse = (peak + (lse - peak).exp2().sum(dim=2, keepdim=True).log2()).squeeze(2)
    mass_kernel[(blocks,)](
        q_window,
        k_cache,
        slots,
        lse,
        mass,
        num_keys,
        num_kv_heads,
        scale,
        logit_cap,
        *strides,
        **shape,
    )
    return F.avg_pool1d(mass[None, None], pool_kernel, stride=1, padding=pool_kernel // 2)[0, 0]
