# SPDX-License-Identifier: Apache-2.0
"""The NVIDIA cards of this machine, asked of the driver (NVML). No torch, no CUDA context."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import sys
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
        wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
        if wanted is not None and wanted.strip().startswith("MIG-"):
            # CUDA takes one slice of a card and nothing that follows it.
            return _slice(nvml, wanted.split(",")[0].strip())
        return tuple(_card(nvml, found[i]) for i in visible(wanted, uuids))


def visible(value: str | None, uuids: list[str]) -> list[int]:
    """Indexes of the cards that a ``CUDA_VISIBLE_DEVICES`` lets through; None: all of them."""
    if value is None:
        return list(range(len(uuids)))
    chosen: list[int] = []
    for word in (part.strip() for part in value.split(",")):
        if word.isascii() and word.isdigit() and int(word) < len(uuids):
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


def gpu_count() -> int:
    """GPUs that a server started here would see.

    A process that has imported torch asks it: there it decides. Else the driver is asked, which
    costs milliseconds; a torch that was built for the CPU alone sees none of its cards. A container
    may have CUDA without NVML (``NVIDIA_DRIVER_CAPABILITIES`` without ``utility``).
    """
    if (torch := sys.modules.get("torch")) is not None:
        return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0
    return 0 if _is_cpu_torch() else len(cards()) or _count_of_cuda()


def first_gpu_bytes() -> int:
    """Memory of the first of them; 0 if there is none."""
    if (torch := sys.modules.get("torch")) is not None:
        if not torch.cuda.is_available():
            return 0
        return int(torch.cuda.get_device_properties(0).total_memory)
    found = cards()
    return found[0].memory_bytes if found else 0


def _count_of_cuda(library: str = "libcuda.so.1") -> int:
    """Cards that CUDA counts; it makes no context for that. 0 without its driver."""
    count = ctypes.c_int(0)
    try:
        cuda = ctypes.CDLL(library)
        if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
    except (OSError, AttributeError):
        return 0
    return count.value


def _is_cpu_torch() -> bool:
    try:
        return importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


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


def _card(nvml: Any, handle: Any, whole: Any = None) -> Card:
    """`whole` is the card that a slice of it (MIG) belongs to."""
    name = nvml.nvmlDeviceGetName(handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle if whole is None else whole)
    try:
        memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:  # cards that share the machine's memory do not tell
        memory = 0
    return Card(name.decode() if isinstance(name, bytes) else name, memory, (major, minor))


def _slice(nvml: Any, uuid: str) -> tuple[Card, ...]:
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        whole = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        return (_card(nvml, handle, whole),)
    except nvml.NVMLError:  # no such slice: CUDA sees nothing either
        return ()
