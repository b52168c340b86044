# SPDX-License-Identifier: Apache-2.0
"""States copied for the prefix cache on the CPU platform."""

from __future__ import annotations

import torch


def track_mamba_states_if_needed(
    conv_states: torch.Tensor,
    ssm_states: torch.Tensor,
    cache_indices: torch.Tensor,
    mamba_track_mask: torch.Tensor,
    mamba_track_indices: torch.Tensor,
    batch_size: int,
    check_freed_slots: bool = False,
) -> None:
    """Copy a layer's states of the rows in the mask to the slots that the tree will keep."""
    _track(
        (conv_states, ssm_states), 0, cache_indices, mamba_track_mask, mamba_track_indices,
        batch_size,
    )  # fmt: skip


def track_mamba_states_all_layers(
    conv_states_pool: torch.Tensor,
    ssm_states_pool: torch.Tensor,
    cache_indices: torch.Tensor,
    mamba_track_mask: torch.Tensor,
    mamba_track_indices: torch.Tensor,
    batch_size: int,
    check_freed_slots: bool = False,
) -> None:
    """The same for all layers at once, whose states lie behind one another."""
    _track(
        (conv_states_pool, ssm_states_pool), 1, cache_indices, mamba_track_mask,
        mamba_track_indices, batch_size,
    )  # fmt: skip


def _track(
    pools: tuple[torch.Tensor, ...],
    slot_dim: int,
    sources: torch.Tensor,
    mask: torch.Tensor,
    targets: torch.Tensor,
    batch_size: int,
) -> None:
    chosen = mask[:batch_size]
    src = sources[:batch_size][chosen].to(torch.int64)
    dst = targets[:batch_size][chosen].to(torch.int64)
    if not len(src):
        return
    for pool in pools:
        pool.index_copy_(slot_dim, dst, pool.index_select(slot_dim, src))
