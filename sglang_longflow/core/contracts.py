# SPDX-License-Identifier: Apache-2.0
"""The data that moves between the stages. Shapes and units are documented once, here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    from sglang_longflow.policies import Policy


@dataclass(frozen=True)
class KVBudget:
    """What one request may keep resident.

    Attributes
    ----------
    tokens : int
        Slots the row may hold in every layer; 0 is full KV, without a bound.
    policy : Policy
        Who picks the slot to overwrite.
    """

    tokens: int
    policy: Policy

    @property
    def is_full(self) -> bool:
        return self.tokens == 0

    def resident(self, seq_len: int) -> int:
        """``kv_len``: how many of `seq_len` logical tokens stay resident."""
        return seq_len if self.is_full else min(seq_len, self.tokens)

    def must_cut(self, prompt_tokens: int) -> bool:
        """A prompt over budget - 1 is cut at the end of prefill."""
        return not self.is_full and prompt_tokens > self.tokens - 1

    def may_overwrite(self, prompt_tokens: int, max_new_tokens: int) -> bool:
        """Whether the row can outgrow the budget before it ends."""
        return not self.is_full and prompt_tokens + max_new_tokens > self.tokens


@dataclass
class KVRow:
    """One request's row of slots, as the scheduler knows it. Lives on SGLang's Req.

    Which slot a full row overwrites is known to the device alone; the counts below follow from
    lengths.

    Attributes
    ----------
    budget : KVBudget
    owned : bool
        No slot of the row is in the radix tree any more, so it may be overwritten.
    cut_tokens : int
        Prompt tokens that were dropped at the end of prefill.
    overwritten_tokens : int
        Decode steps launched that overwrote a slot.
    decode_steps : int
        Decode steps launched since prefill.
    prompt_keep : torch.Tensor or None
        [num_layers, budget - 1] int64 on the device: the prompt positions each layer keeps,
        written by the last prefill chunk, read once by the first decode step.
    """

    budget: KVBudget
    owned: bool = False
    cut_tokens: int = 0
    overwritten_tokens: int = 0
    decode_steps: int = 0
    prompt_keep: torch.Tensor | None = None

    def reset(self) -> None:
        """Back to the state before prefill (a retracted request starts over)."""
        self.owned = False
        self.cut_tokens = 0
        self.overwritten_tokens = 0
        self.decode_steps = 0
        self.prompt_keep = None


@dataclass(frozen=True)
class RowMove:
    """K/V copied into a row's own slots before it is overwritten for the first time.

    Attributes
    ----------
    src_slots : torch.Tensor
        [n] int64, pool slots of the row before the move.
    dst_slots : torch.Tensor
        [m] int64, the slots that get ``src_slots[keep[layer]]`` (m <= n), or all of it (m == n).
    keep : torch.Tensor or None
        [num_layers, m] int64 positions into `src_slots`; None copies one to one.
    """

    src_slots: torch.Tensor
    dst_slots: torch.Tensor
    keep: torch.Tensor | None = None


@dataclass(frozen=True)
class PromptRow:
    """A row whose last prefill chunk is in the batch and whose prompt must be cut.

    Attributes
    ----------
    query_end : int
        Where the row's queries end in the batch's packed [num_tokens, ...] query tensor.
    keep : torch.Tensor
        ``KVRow.prompt_keep``, to be filled layer by layer.
    """

    query_end: int
    req_pool_idx: int
    prompt_tokens: int
    budget: KVBudget
    keep: torch.Tensor


@dataclass(frozen=True)
class PrefillView:
    """What the backend needs to know of a prefill batch: the rows to cut."""

    rows: tuple[PromptRow, ...]


class FullRow(NamedTuple):  # one for each row and step: a dataclass takes four times as long
    """A row that is full after a decode step and needs a victim for the next one.

    Attributes
    ----------
    batch_index : int
        Its place in the batch.
    budget : KVBudget
    overwrites : int
        Tokens overwritten since it filled, this step's included; 0 if it filled now.
    decode_steps : int
        Decode steps since prefill, this one included.
    was_cut : bool
        Its prompt was over budget - 1.
    """

    batch_index: int
    budget: KVBudget
    overwrites: int
    decode_steps: int
    was_cut: bool

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt among those that filled the row."""
        return self.budget.tokens - (self.decode_steps - self.overwrites)


@dataclass(frozen=True)
class DecodeView:
    """What the backend needs to know of a decode batch, all host data.

    Attributes
    ----------
    kv_lens : list of int
        Resident length of each row after this step's write.
    overwrite : list of bool
        The row overwrites its victim in this step (and takes no new slot).
    fresh : list of bool
        The row was cut just now: its only free place is its last one.
    full_rows : list of FullRow
    moves : list of RowMove
        To be carried out before anything in this step reads or writes K/V.
    """

    kv_lens: list[int]
    overwrite: list[bool]
    fresh: list[bool]
    full_rows: list[FullRow]
    moves: list[RowMove] = field(default_factory=list)
