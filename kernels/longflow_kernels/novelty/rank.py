# SPDX-License-Identifier: Apache-2.0
"""What novelty adds to a row's scores, followed from step to step: parts of the combine kernel."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def novelty_at_most(level, recall, weight, recall_threshold):
    """The most that novelty adds to a slot: the bonus of one unlike all newer ones (`recall`)."""
    worth = tl.minimum(recall / recall_threshold, 1.0)
    worth = worth * worth
    worth = worth * worth
    return level * weight * worth * worth


@triton.jit
def store_sums(sums_at, chunk, below, back, total, CHUNKS: tl.constexpr):
    """A chunk's part of the row's three sums; `sums_at` is the row's [3, CHUNKS]."""
    tl.store(sums_at + chunk, below)
    tl.store(sums_at + CHUNKS + chunk, back)
    tl.store(sums_at + 2 * CHUNKS + chunk, total)


@triton.jit
def load_sums(sums_at, CHUNKS: tl.constexpr):
    """The row's three sums, of the parts that all chunks have stored."""
    offs_c = tl.arange(0, CHUNKS)
    below = tl.sum(tl.load(sums_at + offs_c, cache_modifier=".cg"))
    back = tl.sum(tl.load(sums_at + CHUNKS + offs_c, cache_modifier=".cg"))
    total = tl.sum(tl.load(sums_at + 2 * CHUNKS + offs_c, cache_modifier=".cg"))
    return below, back, total


@triton.jit
def next_level_of_row(level, below, total, kv_len, written, share, pace, lowest):
    """The row's level after this step (`level.next_level`), or as it begins (`level.first_level`).

    `below` slots remember less than the level; `total` is the sum of this step's scores. The level
    begins when the row fills, the slots' memory only with the first overwrite.
    """
    followed = level * (1 + pace * (share - below / kv_len))
    begun = total / kv_len * share
    return tl.maximum(tl.where(written > 0, followed, begun), lowest)


@triton.jit
def next_recall_of_row(recall, back, total, written, first, pace):
    """The row's recall after this layer (`recall.next_recall`); `first` in the step that fills it.

    `back` of the step's scores, `total` in all, went to slots that were below the level.
    """
    part = tl.where(total > 0, back / tl.where(total > 0, total, 1.0), 0.0)
    recall += tl.where(written > 1, pace * (part - recall), 0.0)
    return tl.where(written > 0, recall, first)
