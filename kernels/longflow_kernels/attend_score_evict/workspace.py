# SPDX-License-Identifier: Apache-2.0
"""Scratch memory of a decode step."""

from __future__ import annotations

import torch

from longflow_kernels.attend_score_evict.l2 import set_aside_l2
from longflow_kernels.attend_score_evict.launch import MIN_BLOCK_N
from longflow_kernels.attend_score_evict.rows import SCORE_ALIGN, score_capacity

MAX_CHUNKS, MAX_CHUNK_SLOTS = 64, 1024
MAX_BLOCK_N = SCORE_ALIGN


class Workspace:
    """Scratch memory of `op.attend_score_evict`, shared by all layers of a model.

    Attributes
    ----------
    score_capacity : int
        Slots whose scores fit: those of scored rows of ``capacity_tokens`` together (the pool's
        size suffices: a scored row owns its slots), each row aligned.
    max_partials : int
        Rows times splits of a step that is split at all; `launch_config` stays below 4 a
        multiprocessor.
    l2_capacity : int
        Scores of slots below it are marked to stay in the L2 cache: those there is room for, all
        where none was set aside (then the mark has no cost, and helps small batches).
    """

    def __init__(
        self,
        *,
        max_batch: int,
        capacity_tokens: int,
        num_q_heads: int,
        v_head_dim: int,
        victim_heads: int,
        device: torch.device | str,
        max_partials: int = 2048,
    ):
        def new(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(*shape, dtype=dtype, device=device)

        self.max_batch = max_batch
        self.score_capacity = score_capacity(capacity_tokens, max_batch)
        self.max_partials = max_partials
        self.partial_out = new(max_partials, num_q_heads, v_head_dim)
        self.partial_lse = new(max(max_batch, max_partials), num_q_heads)
        # Scores are read in whole chunks: past the end of the last row too.
        width = self.score_capacity + MAX_CHUNK_SLOTS
        self.scores = new(width * num_q_heads, dtype=torch.int16)
        self.tile_peak = new(width // MIN_BLOCK_N * num_q_heads)
        self.best_score = new(max_batch, victim_heads, MAX_CHUNKS)
        self.best_index = new(max_batch, victim_heads, MAX_CHUNKS, dtype=torch.int32)
        self.chunk_sums = new(max_batch, 3, MAX_CHUNKS)
        self.arrived = torch.zeros(max_batch, victim_heads, dtype=torch.int32, device=device)
        self.score_bytes = num_q_heads * self.scores.element_size()  # of one slot
        self.l2_capacity = self.score_capacity

    def keep_in_l2(self, tokens: int) -> int:
        """Set L2 cache aside for the scores of this many tokens; returns the bytes granted.

        They are this process's until another call, of any workspace.
        """
        room = set_aside_l2(tokens * self.score_bytes, self.scores.device)
        self.l2_capacity = room // self.score_bytes if room else self.score_capacity
        return room

    @property
    def nbytes(self) -> int:
        """Bytes of device memory held."""
        tensors = [value for value in vars(self).values() if isinstance(value, torch.Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
