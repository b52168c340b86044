# SPDX-License-Identifier: Apache-2.0
"""The NVIDIA cards of this machine, asked of the driver (NVML). No torch, no CUDA context."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Card:
    """One card: the name that ``nvidia-smi`` prints, its memory in bytes, compute capability."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]


def cards() -> tuple[Card, ...]:
    """The cards that CUDA would use in this process, in its order; empty without a driver.

    ``CUDA_VISIBLE_DEVICES`` is obeyed as CUDA does it: what follows an entry that names no card is
    not seen either.
    """
    with _nvml() as nvml:
        if nvml is None:
            return ()
        found = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        uuids = [str(nvml.nvmlDeviceGetUUID(handle)) for handle in found]
        chosen = visible(os.environ.get("CUDA_VISIBLE_DEVICES"), uuids)
        return tuple(_card(nvml, found[i]) for i in chosen)


def visible(value: str | None, uuids: list[str]) -> list[int]:
    """Indexes of the cards that a ``CUDA_VISIBLE_DEVICES`` lets through; None: all of them."""
    if value is None:
        return list(range(len(uuids)))
    chosen: list[int] = []
    for word in (part.strip() for part in value.split(",")):
        if word.isdigit() and int(word) < len(uuids):
            place = int(word)
        else:
            matches = [i for i, uuid in enumerate(uuids) if word and uuid.startswith(word)]
            if len(matches) != 1:
                break
            (place,) = matches
        if place in chosen:
            return []  # CUDA then sees none at all
        chosen.append(place)
    return chosen


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """The NVML module, initialized; None where it or the driver is missing."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, no library or no driver: NVML has a class of error for each
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _card(nvml: Any, handle: Any) -> Card:
    name = nvml.nvmlDeviceGetName(handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Card(
        name.decode() if isinstance(name, bytes) else name,
        int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        (major, minor),
    )
