# SPDX-License-Identifier: Apache-2.0
"""Decode: each row's next victim in every layer, on the device, between steps."""

from __future__ import annotations

import torch


class VictimState:
    """Which slot each row overwrites next. Never read by the host.

    Attributes
    ----------
    next_slot : torch.Tensor
        [num_layers, num_rows, victim_heads] int32 on the device. ``next_slot[layer, req_pool_idx]``
        holds indices into the row (0 .. budget - 1), not pool slots: a row may move to other pool
        slots between the step that picks the victim and the step that overwrites it.
        `victim_heads` is 1, or the number of KV heads if each overwrites its own victim.
    recent : torch.Tensor or None
        [num_layers, num_rows, victim_heads, protect_recent_tokens] int32, a ring of the row indices
        written last; None if nothing recent is protected.
    """

    def __init__(
        self,
        num_layers: int,
        num_rows: int,
        protect_recent_tokens: int,
        device: torch.device,
        victim_heads: int = 1,
    ):
        shape = (num_layers, num_rows, victim_heads)
        self.next_slot = torch.zeros(shape, dtype=torch.int32, device=device)
        self.recent = (
            torch.zeros(*shape, protect_recent_tokens, dtype=torch.int32, device=device)
            if protect_recent_tokens
            else None
        )

    @property
    def victim_heads(self) -> int:
        return int(self.next_slot.shape[2])

    @property
    def state_bytes(self) -> int:
        tensors = [self.next_slot] + ([self.recent] if self.recent is not None else [])
        return sum(t.numel() * t.element_size() for t in tensors)

    def start_cut_rows(self, rows: torch.Tensor, budget_tokens: torch.Tensor) -> None:
        """A cut row holds budget - 1 tokens: its last place is free and is filled next.

        Parameters
        ----------
        rows, budget_tokens : torch.Tensor
            [n], req_pool_idx (int64) and budget of each row.
        """
        last = (budget_tokens - 1).to(torch.int32)
        self.next_slot[:, rows] = last[:, None].expand(-1, self.victim_heads)

    def record_written(
        self, layer_place: int, rows: torch.Tensor, budget_tokens: int, overwrites: list[int]
    ) -> torch.Tensor | None:
        """Update the ring of recent tokens of full rows; returns it, [n, protect_recent_tokens].

        Call after this step's K/V was written and before the next victim replaces `next_slot`. For
        one victim per layer; the fused kernel keeps the rings by itself.
        """
        if self.recent is None:
            return None
        size = self.recent.shape[-1]
        done = torch.tensor(overwrites, dtype=torch.int64).to(rows.device, non_blocking=True)
        ring = self.recent[layer_place, rows, 0]
        filled_now = torch.arange(
            budget_tokens - size, budget_tokens, dtype=torch.int32, device=rows.device
        )
        place = torch.arange(size, device=rows.device) == ((done - 1) % size)[:, None]
        written = self.next_slot[layer_place, rows]
        ring = torch.where(
            (done == 0)[:, None], filled_now[None], torch.where(place, written, ring)
        )
        self.recent[layer_place, rows, 0] = ring
        return ring
