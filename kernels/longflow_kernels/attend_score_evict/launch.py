# SPDX-License-Identifier: Apache-2.0
"""How the work of a decode step is cut for a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

#: Tokens: a shorter split costs more to combine than it saves.
MIN_SPLIT_TOKENS = 256
#: Bytes of shared memory per channel that the attention kernel takes beside its tile of K and V, at
#: most: queries, probabilities and scores (`scripts/compile_kernels.py` compares).
BESIDE_TILE_BYTES = 72
#: Slots of the smallest tile.
MIN_BLOCK_N = 16


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
    batch: int,
    num_kv_heads: int,
    head_dim: int,
    num_sms: int,
    *,
    itemsize: int = 2,
    shared_bytes: int | None = None,
) -> LaunchConfig:
    """The cut for a batch of this size: enough programs to fill the GPU about once.

    Parameters
    ----------
    batch, num_kv_heads, head_dim : int
    num_sms : int
        Multiprocessors of the GPU.
    itemsize : int
        Bytes of an element of the cache.
    shared_bytes : int, optional
        Shared memory that a program may take (`target.Target`); None: no limit. Tiles are halved
        until K and V of one fit.
    """
    config = _cut(batch, num_kv_heads, head_dim, num_sms, itemsize)
    channels = 1 << (head_dim - 1).bit_length()
    # fp8 is multiplied as what the queries are, of 2 bytes.
    while shared_bytes is not None and (
        channels * (2 * config.block_n * max(2, itemsize) + BESIDE_TILE_BYTES) > shared_bytes
    ):
        if config.block_n == MIN_BLOCK_N:
            raise ValueError(
                f"head_dim={head_dim} of {itemsize} bytes: a tile of {MIN_BLOCK_N} slots does not "
                f"fit into the {shared_bytes} bytes of shared memory of this GPU"
            )
        config = replace(config, block_n=config.block_n // 2)
    return config


def _cut(batch: int, num_kv_heads: int, head_dim: int, num_sms: int, itemsize: int) -> LaunchConfig:
    programs = max(1, batch * num_kv_heads)
    splits = 1
    while splits < 64 and 2 * splits * programs <= 4 * num_sms:
        splits *= 2
    # One warp scores 128 slots of all heads without waiting for another. With 256 Triton 3.8 spills
    # registers where novelty is added (3.6 does not).
    cut = dict(max_splits=splits, chunks=32, chunk_slots=128, voters=32, choose_warps=1)
    if splits > 16:
        cut.update(min_split_tokens=128, choose_warps=4)
    if head_dim * itemsize > 256:
        return LaunchConfig(block_n=32, num_stages=2, **(cut | dict(chunk_slots=64)))
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
