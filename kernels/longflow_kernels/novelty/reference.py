# SPDX-License-Identifier: Apache-2.0
"""Plain-PyTorch similarity of tokens: how well a newer one's key replaces an older one's."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from longflow_kernels.limits import COMPARED_TOKENS


def slow_channels(keys: torch.Tensor) -> torch.Tensor:
    """The quarter of a key's channels that RoPE turns least, where it turns channel i with
    i + head_dim / 2: the last quarter of each half. Slices: a list as index waits for the GPU."""
    half = keys.shape[-1] // 2
    slow = half * 3 // 4
    return torch.cat((keys[..., slow:half], keys[..., half + slow :]), dim=-1)


def key_similarity(older: torch.Tensor, newer: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of keys over the slow channels of all KV heads; negative ones count as 0.

    Parameters
    ----------
    older, newer : torch.Tensor
        [n, num_kv_heads, head_dim] and [m, num_kv_heads, head_dim], after RoPE.

    Returns
    -------
    torch.Tensor
        [n, m], from 0 to 1, in their dtype.
    """
    a, b = (F.normalize(slow_channels(keys).flatten(1), dim=-1) for keys in (older, newer))
    return (a @ b.T).clamp(0.0, 1.0)


def max_similarity_to_newer(keys: torch.Tensor, age: torch.Tensor, part: int = 512) -> torch.Tensor:
    """[n]: each token's largest `key_similarity` to a token written after it; 0 for the last.

    Parameters
    ----------
    keys : torch.Tensor
        [n, num_kv_heads, head_dim] of one row, after RoPE.
    age : torch.Tensor
        [n] integers: the higher, the later a token was written.
    part : int
        Tokens that are compared with all others at once: a long row's products are large.

    Returns
    -------
    torch.Tensor
        [n] in the keys' dtype.
    """
    found = []
    for some in torch.arange(len(keys), device=keys.device).split(part):
        similarities = key_similarity(keys[some], keys)
        newer = age[None, :] > age[some, None]
        found.append(similarities.masked_fill(~newer, 0.0).amax(dim=1))
    return torch.cat(found)


def compares(overwrites: int) -> bool:
    """Whether a row compares tokens in the step that brings its overwrites to this number."""
    return overwrites == 1 or (overwrites > 0 and overwrites % COMPARED_TOKENS == 0)


def found_similarity(keys: torch.Tensor, last: torch.Tensor, overwrites: int) -> torch.Tensor:
    """Similarity of a row's older tokens to its newest, every `COMPARED_TOKENS` overwrites.

    With its first overwrite a row compares every token with all that were written after it; until
    then its tokens lie in the order of the sequence. Later it compares all with the last ones.

    Parameters
    ----------
    keys : torch.Tensor
        [kv_len, num_kv_heads, head_dim] of a full row, after RoPE.
    last : torch.Tensor
        [COMPARED_TOKENS] integers, row indices of the tokens written last, the newest first; only
        the first one is read where `overwrites` is 1.
    overwrites : int
        Tokens overwritten since the row filled, this step's included.

    Returns
    -------
    torch.Tensor
        [kv_len] from 0 to 1, 0 if nothing was compared, in the keys' dtype.
    """
    kv_len = keys.shape[0]
    if not compares(overwrites):
        return keys.new_zeros(kv_len)
    if overwrites == 1:
        age = torch.arange(kv_len, device=keys.device)
        age.index_fill_(0, last[:1].long(), kv_len)
        return max_similarity_to_newer(keys, age)
    order = torch.arange(COMPARED_TOKENS, device=keys.device)
    since = torch.full((kv_len,), COMPARED_TOKENS, device=keys.device)
    since[last.long()] = order
    similarities = key_similarity(keys, keys[last.long()])
    return similarities.masked_fill(order[None, :] >= since[:, None], 0.0).amax(dim=1)
