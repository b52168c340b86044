# SPDX-License-Identifier: Apache-2.0
"""Decode: what policies remember of slots and queries, on the device, between steps."""

from __future__ import annotations

from functools import cached_property

import torch

from longflow_kernels import RECALL_PACE, first_level, next_level, next_recall
from longflow_kernels.attend_score_evict.arguments import RowState
from sglang_longflow.backend.victim_state import VictimState
from sglang_longflow.core.contracts import FullRow
from sglang_longflow.policies.rows import Needs, undeclared


class PolicyMemory:
    """Memory for one server's policies, for all layers; only what they need is allocated.

    A layer is told by its place among those that have rows (`core.layers`).

    A token's values lie at its pool slot, so their size is that of the pool, however long rows are.
    A row owns its slots from its first overwrite on; until then nothing is stored for them.

    Attributes
    ----------
    slot_values : torch.Tensor or None
        [num_layers, num_slots * values_per_slot] float32, those of a slot side by side: its scores,
        one for each of `victim_heads`; or its score and its similarity.
    slot_score : torch.Tensor or None
        [num_layers, num_slots * victim_heads], in `slot_values`.
    slot_similarity : torch.Tensor or None
        [num_layers, num_slots], in `slot_values`.
    row_level : torch.Tensor or None
        [num_layers, num_rows] float32, a running quantile of the row's remembered scores.
    row_recall : torch.Tensor or None
        [num_rows] float32, the share of the row's scores that goes to slots below the level; each
        layer updates it in turn.
    recall_pace : float
        Weight of one layer in that moving average.
    slot_order : torch.Tensor or None
        [num_layers, num_slots] int32, when the slot's token was written: its place in the row as
        it filled, then counting on.
    queries : torch.Tensor or None
        [num_layers, num_rows, query_window, num_q_heads, head_dim], a ring by position.
    queue : torch.Tensor or None
        [num_layers, num_rows, queue_tokens] int32, victims of the steps to come.
    """

    def __init__(
        self,
        needs: Needs,
        *,
        num_layers: int,
        num_rows: int,
        num_slots: int,
        num_q_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        victim_heads: int = 1,
    ):
        self.needs = needs

        def new(needed: int | bool, *shape: int, dtype: torch.dtype) -> torch.Tensor | None:
            return torch.zeros(num_layers, *shape, dtype=dtype, device=device) if needed else None

        window, queue = needs.query_window, needs.queue_tokens
        values_per_slot = 2 if needs.slot_similarity else victim_heads
        self.slot_values = new(needs.slot_score, num_slots * values_per_slot, dtype=torch.float32)
        self.slot_score, self.slot_similarity = self.slot_values, None
        if needs.slot_similarity:
            assert self.slot_values is not None and victim_heads == 1
            pairs = self.slot_values.view(num_layers, -1, 2)
            self.slot_score, self.slot_similarity = pairs.unbind(2)
        self.row_level = new(needs.slot_similarity, num_rows, dtype=torch.float32)
        self.row_recall = torch.zeros(num_rows, device=device) if needs.slot_similarity else None
        self.recall_pace = RECALL_PACE / num_layers
        self.slot_order = new(needs.slot_order, num_slots, dtype=torch.int32)
        self.queries = new(window, num_rows, window, num_q_heads, head_dim, dtype=dtype)
        self.queue = new(queue, num_rows, queue, dtype=torch.int32)

    @property
    def nbytes(self) -> int:
        tensors = (
            self.slot_values,
            self.row_level,
            self.row_recall,
            self.slot_order,
            self.queries,
            self.queue,
        )
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def row_state(self, layer_place: int, victims: VictimState) -> RowState:
        """One layer's `RowState` for the fused kernels: views of this memory and of `victims`.

        They are valid as long as both.
        """

        def layer(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor[layer_place]

        return RowState(
            next_slot=victims.next_slot[layer_place],
            recent=layer(victims.recent),
            slot_values=layer(self.slot_values),
            row_level=layer(self.row_level),
            row_recall=self.row_recall,
            recall_pace=self.recall_pace,
        )

    def record_queries(
        self, layer_place: int, rows: torch.Tensor, positions: torch.Tensor, queries: torch.Tensor
    ) -> None:
        """Remember one query of each row, or several of one row.

        Parameters
        ----------
        rows, positions : torch.Tensor
            [n] int64: req_pool_idx, and the position of the query in its sequence.
        queries : torch.Tensor
            [n, num_q_heads, head_dim], after RoPE.
        """
        if self.queries is not None:
            self.queries[layer_place, rows, positions % self.needs.query_window] = queries


class StepRows:
    """Full rows of one step, the same in every layer; what the host knows is sent over once.

    Attributes
    ----------
    rows : torch.Tensor
        [n] int64 req_pool_idx.
    slots : torch.Tensor
        [n, budget] int64 pool slots.
    positions : torch.Tensor
        [n] int64, where this step's tokens stand in their sequences.
    full_rows : list of FullRow
    """

    def __init__(
        self,
        rows: torch.Tensor,
        slots: torch.Tensor,
        positions: torch.Tensor,
        full_rows: list[FullRow],
    ):
        self.rows = rows
        self.slots = slots
        self.positions = positions
        self.full_rows = full_rows

    def _device(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self.rows.device, non_blocking=True)

    @cached_property
    def overwrites(self) -> torch.Tensor:
        """[n, 1] int64."""
        return self._device([row.overwrites for row in self.full_rows])[:, None]

    @cached_property
    def own(self) -> torch.Tensor:
        """[k] int64: which rows own their slots, so that something may be stored for them."""
        return self._device([i for i, row in enumerate(self.full_rows) if row.overwrites > 0])

    @cached_property
    def query_count(self) -> torch.Tensor:
        """[n, 1] int64: how many of a row's last queries are remembered, at most."""
        cut = torch.iinfo(torch.int64).max  # its prompt's window is, whole
        return self._device([cut if row.was_cut else row.decode_steps for row in self.full_rows])[
            :, None
        ]

    def queue_place(self, interval: int) -> torch.Tensor:
        """[n] int64: where in its queue each row is."""
        return (self.overwrites % interval)[:, 0]


class LayerRows:
    """`PolicyMemory` of one layer's full rows in one step (`policies.rows.RowMemory`).

    Attributes
    ----------
    step : StepRows
    written : torch.Tensor
        [n] int64, the row index that this step wrote.
    """

    def __init__(
        self, memory: PolicyMemory, layer_place: int, step: StepRows, victims: torch.Tensor
    ):
        """`victims` [n] int64: the slot each row was due to overwrite; undefined for rows that have
        just filled (it may come from an earlier, longer row)."""
        self.memory = memory
        self.layer_place = layer_place
        self.step = step
        last = step.slots.shape[1] - 1
        self.written = torch.where(step.overwrites[:, 0] == 0, last, victims)
        self._order: torch.Tensor | None = None
        if memory.slot_order is not None:
            self._order = self._record_order(memory.slot_order[layer_place])

    def _record_order(self, stored: torch.Tensor) -> torch.Tensor:
        slots, done, own = self.step.slots, self.step.overwrites, self.step.own
        budget = slots.shape[1]
        filled = torch.arange(budget, device=slots.device).expand_as(slots)
        order = torch.where(done <= 1, filled, stored[slots].long())
        order = order.scatter(1, self.written[:, None], budget - 1 + done)
        stored[slots[own]] = order[own].to(torch.int32)
        return order

    def order(self) -> torch.Tensor:
        """[n, budget] int64: the higher, the later a slot's token was written."""
        if self._order is None:
            raise undeclared("order", "slot_order=True")
        return self._order

    def accumulate(
        self, scores: torch.Tensor, decay: float = 1.0, peak: bool = False
    ) -> torch.Tensor:
        """What the slots have, counted `decay` times, plus `scores` [n, budget] (or the larger)."""
        if self.memory.slot_score is None:
            raise undeclared("accumulate", "slot_score=True")
        stored = self.memory.slot_score[self.layer_place]
        before = self._before(stored) * decay
        return self._store(stored, torch.maximum(before, scores) if peak else before + scores)

    def max_similarity(self, similarity: torch.Tensor) -> torch.Tensor:
        """The larger of what the slots have and `similarity` [n, budget]."""
        if self.memory.slot_similarity is None:
            raise undeclared("max_similarity", "slot_similarity=True")
        stored = self.memory.slot_similarity[self.layer_place]
        return self._store(stored, torch.maximum(self._before(stored), similarity))

    def level(self, remembered: torch.Tensor, share: float) -> torch.Tensor:
        """[n, 1]: the running `share`-quantile of each row's `remembered` [n, budget], as of the
        step before; also updates it. 0 before a row's first overwrite."""
        if self.memory.row_level is None:
            raise undeclared("level", "slot_similarity=True")
        stored, rows = self.memory.row_level[self.layer_place], self.step.rows
        done = self.step.overwrites
        level = torch.where(done == 0, 0.0, stored[rows][:, None])
        first, later = first_level(remembered, share), next_level(level, remembered, share)
        stored[rows] = torch.where(done == 0, first, later)[:, 0]
        return level

    def recall(self, part: torch.Tensor, begins_at: float) -> torch.Tensor:
        """[n, 1]: each row's recall up to the layer before, `begins_at` for rows that have just
        filled; also updates it with this layer's `part` [n, 1]."""
        if self.memory.row_recall is None:
            raise undeclared("recall", "slot_similarity=True")
        stored, rows, done = self.memory.row_recall, self.step.rows, self.step.overwrites
        recall = torch.where(done == 0, begins_at, stored[rows][:, None])
        later = next_recall(recall, part, self.memory.recall_pace)
        stored[rows] = torch.where(done > 1, later, recall)[:, 0]
        return recall

    def past(self, decay: float) -> torch.Tensor:
        """[n, budget]: what `accumulate` had for the slots, counted `decay` times."""
        if self.memory.slot_score is None:
            raise undeclared("past", "slot_score=True")
        return self._before(self.memory.slot_score[self.layer_place]) * decay

    def _before(self, stored: torch.Tensor) -> torch.Tensor:
        """[n, budget]: what was stored for the slots' tokens; 0 for those without a history."""
        before = torch.where(self.step.overwrites <= 1, 0.0, stored[self.step.slots])
        return before.scatter(1, self.written[:, None], 0.0)

    def _store(self, stored: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        own = self.step.own
        stored[self.step.slots[own]] = total[own]
        return total

    def queries(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The last queries [n, window, num_q_heads, head_dim], oldest first, and which exist.

        The others are 0, whatever an earlier request left there.
        """
        if self.memory.queries is None:
            raise undeclared("queries", "query_window=...")
        window = self.memory.needs.query_window
        step = self.step
        age = torch.arange(window - 1, -1, -1, device=step.rows.device)
        ring = (step.positions[:, None] - age) % window
        queries = self.memory.queries[self.layer_place, step.rows[:, None], ring].float()
        exist = age < step.query_count
        return torch.where(exist[..., None, None], queries, 0.0), exist

    def store_queue(self, queue: torch.Tensor) -> None:
        """Remember victims [n, interval]."""
        if self.memory.queue is None:
            raise undeclared("store_queue", "queue_tokens=...")
        self.memory.queue[self.layer_place, self.step.rows, : queue.shape[1]] = queue.to(
            torch.int32
        )

    def queued(self, interval: int) -> torch.Tensor:
        """[n] int64, this step's victims out of the queues."""
        if self.memory.queue is None:
            raise undeclared("queued", "queue_tokens=...")
        place = self.step.queue_place(interval)
        return self.memory.queue[self.layer_place, self.step.rows, place].long()
