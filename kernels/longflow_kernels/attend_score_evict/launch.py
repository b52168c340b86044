# SPDX-License-Identifier: Apache-2.0
"""How the work of a decode step is cut for a GPU."""

from __future__ import annotations

from dataclasses import dataclass

#: Tokens: a shorter split costs more to combine than it saves.
MIN_SPLIT_TOKENS = 256


@dataclass(frozen=True)
class LaunchConfig:
    """How the work is cut; none of it changes the result beyond rounding.

    Attributes
    ----------
    block_n : int
        Slots in a tile of attention and of scores; a power of 2 from 16 to 128.
    max_splits : int
        Programs that may share a row of one KV head.
    min_split_tokens : int
    chunks : int
        Programs that score one row; a power of 2.
    chunk_slots : int
        Slots that one of them scores at a time; a power of 2, at least `block_n`.
    voters : int
        Heads whose scores it adds at a time; a power of 2.
    choose_warps : int
        Of such a program.
    num_warps, num_stages : int
        Of the attention kernel.
    max_registers : int or None
        Of a thread of the attention kernel: fewer let more programs run on a multiprocessor.
    """

    block_n: int = 64
    max_splits: int = 8
    min_split_tokens: int = MIN_SPLIT_TOKENS
    chunks: int = 4
    chunk_slots: int = 512
    voters: int = 8
    choose_warps: int = 4
    num_warps: int = 4
    num_stages: int = 3
    max_registers: int | None = None


def launch_config(
    batch: int, num_kv_heads: int, head_dim: int, num_sms: int, *, itemsize: int = 2
) -> LaunchConfig:
    """The cut for a batch of this size: enough programs to fill the GPU about once."""
    programs = max(1, batch * num_kv_heads)
    splits = 1
    while splits < 64 and 2 * splits * programs <= 4 * num_sms:
        splits *= 2
    # One warp scores 256 slots without waiting for another; a small batch reads all heads at once.
    cut = dict(max_splits=splits, chunks=16, chunk_slots=256, voters=8, choose_warps=1)
    if splits > 1:
        cut.update(voters=32)
    if splits > 2:
        cut.update(chunks=32, chunk_slots=128)
    if splits > 16:
        cut.update(min_split_tokens=128, choose_warps=4)
    if head_dim * itemsize > 256:
        return LaunchConfig(block_n=32, num_stages=2, **cut)
    plain = itemsize == 2 and head_dim in (64, 128)  # others would spill
    if splits <= 2:
        # Four programs with small tiles share a multiprocessor, or two with large ones. Small ones
        # are faster, unless their last round would leave much more of the GPU idle.
        small = plain and _idle(splits * programs, 4 * num_sms) < 0.1 + _idle(
            splits * programs, 2 * num_sms
        )
        tile = dict(block_n=64, num_warps=2) if small else dict(block_n=128)
        return LaunchConfig(num_stages=3, **tile, **cut)
    return LaunchConfig(num_stages=2, max_registers=128 if plain and splits <= 16 else None, **cut)


def _idle(programs: int, at_once: int) -> float:
    """Share of all rounds' places that stay empty when `at_once` programs run together."""
    rounds = -(-programs // at_once)
    return 1 - programs / (rounds * at_once)
