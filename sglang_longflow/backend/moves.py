# SPDX-License-Identifier: Apache-2.0
"""K/V moved into rows that are about to be overwritten for the first time."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sglang_longflow.backend.sglang_types import KVPool
from sglang_longflow.core.contracts import RowMove
from sglang_longflow.core.layers import KVLayers


def copy_moved_kv(moves: Sequence[RowMove], kv_pool: KVPool, layers: KVLayers) -> None:
    """Copy every move of a step, layer by layer; mutates the pool.

    All sources of a layer are read before any destination is written: a slot that one row gave
    back may be another row's new slot in the same step.

    Parameters
    ----------
    moves : sequence of RowMove
    kv_pool : MHATokenToKVPool
    layers : KVLayers
    """
    if not moves:
        return
    dst = torch.cat([move.dst_slots for move in moves]).to(torch.int64)
    # All layers' sources at once, and copies that are cheap to launch: with a thousand rows some
    # row is cut in almost every step, and the GPU waits for what is launched here.
    src = torch.cat(
        [
            move.src_slots.expand(len(layers), -1)
            if move.keep is None
            else move.src_slots[move.keep]
            for move in moves
        ],
        dim=1,
    )
    for layer_id, layer_src in zip(layers.ids, src.unbind(), strict=True):
        for buffer in (kv_pool.get_key_buffer(layer_id), kv_pool.get_value_buffer(layer_id)):
            raw = buffer.view(torch.uint8) if buffer.dtype.itemsize == 1 else buffer
            raw.index_copy_(0, dst, raw.index_select(0, layer_src))
    if dst.is_cuda:
        # The scheduler made these on its own stream and drops them before this one is done.
        stream = torch.cuda.current_stream()
        for move in moves:
            for tensor in (move.src_slots, move.dst_slots, move.keep):
                if tensor is not None:
                    tensor.record_stream(stream)
