# SPDX-License-Identifier: Apache-2.0
"""The cards that the planner knows, and by which names people call them.

Memory is what CUDA reports as usable, which is less than the vendor's figure; bandwidth and the
dense 16-bit rate (with 32-bit sums) are those of the vendor's data sheets, without sparsity.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sglang_longflow.planner.geometry import PlanError
from sglang_longflow.settings.device import Card, cards

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One card: memory that CUDA reports as usable, peak bandwidth, dense 16-bit peak.

    ``driver_names`` are those that ``nvidia-smi`` prints, without "NVIDIA "; with dashes for blanks
    they are Kubernetes' label ``nvidia.com/gpu.product``.
    """

    name: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    operations_per_s: float
    driver_names: tuple[str, ...] = ()
    nicknames: tuple[str, ...] = ()


_HOPPER, _BLACKWELL = 989e12, 2250e12
#: Name, memory in GiB as CUDA reports it, bytes/s, operations/s, the driver's names, other names.
_ROWS: tuple[tuple[str, float, float, float, tuple[str, ...], tuple[str, ...]], ...] = (
    ("H100-80G", 79.1, 3.35e12, _HOPPER, ("H100 80GB HBM3",), ("H100", "H100 SXM", "H100 SXM5")),
    ("H100-PCIE-80G", 79.1, 2.0e12, 756e12, ("H100 PCIe",), ()),
    ("H100-NVL-94G", 93.1, 3.9e12, 835e12, ("H100 NVL",), ()),
    ("H200-141G", 139.8, 4.8e12, _HOPPER, ("H200",), ("H200 SXM",)),
    ("H200-NVL-141G", 139.8, 4.8e12, 835e12, ("H200 NVL",), ()),
    ("H20-96G", 95.0, 4.0e12, 148e12, ("H20",), ()),
    ("GH200-96G", 94.5, 4.0e12, _HOPPER, ("GH200 480GB", "GH200 120GB"), ()),
    ("GH200-144G", 142.5, 4.9e12, _HOPPER, ("GH200 144G HBM3e",), ()),
    ("B200-180G", 178.35, 7.7e12, _BLACKWELL, ("B200",), ("B200-192G", "B200 SXM")),
    ("B300-270G", 267.7, 7.7e12, _BLACKWELL, ("B300 SXM6 AC",), ("B300", "B300-288G")),
    ("GB200-186G", 184.3, 8.0e12, 2500e12, ("GB200",), ("GB200-192G",)),
    ("GB300-278G", 276.5, 8.0e12, 2500e12, ("GB300",), ("GB300-288G",)),
    ("A100-40G", 39.4, 1.555e12, 312e12, ("A100-SXM4-40GB", "A100-PCIE-40GB"), ()),
    ("A100-80G", 79.1, 2.039e12, 312e12, ("A100-SXM4-80GB",), ("A100-SXM-80G",)),
    ("A100-PCIE-80G", 79.1, 1.935e12, 312e12, ("A100 80GB PCIe",), ()),
    ("L4-24G", 22.0, 0.3e12, 121e12, ("L4",), ()),
    ("L40-48G", 44.4, 0.864e12, 181e12, ("L40",), ()),
    ("L40S-48G", 44.4, 0.864e12, 362e12, ("L40S",), ()),
    ("A10-24G", 22.05, 0.6e12, 125e12, ("A10",), ()),
    ("A10G-24G", 22.05, 0.6e12, 70e12, ("A10G",), ()),
    ("A40-48G", 44.4, 0.696e12, 149.7e12, ("A40",), ()),
    ("A6000-48G", 47.4, 0.768e12, 154.8e12, ("RTX A6000",), ("A6000",)),
    (
        "RTX6000ADA-48G", 47.4, 0.96e12, 364.2e12,
        ("RTX 6000 Ada Generation",), ("RTX 6000 Ada", "6000 Ada"),
    ),
    (
        "RTXPRO6000-96G", 94.97, 1.597e12, 503.8e12,
        ("RTX PRO 6000 Blackwell Server Edition",), ("RTX PRO 6000", "RTX PRO 6000 Server"),
    ),
    (
        "RTXPRO6000WS-96G", 94.97, 1.792e12, 503.8e12,
        ("RTX PRO 6000 Blackwell Workstation Edition",), ("RTX PRO 6000 Workstation",),
    ),
    ("RTX5090-32G", 31.36, 1.792e12, 209.5e12, ("GeForce RTX 5090",), ("RTX 5090", "5090")),
    ("RTX4090-24G", 23.5, 1.008e12, 165e12, ("GeForce RTX 4090",), ("RTX 4090", "4090")),
    ("RTX3090-24G", 23.68, 0.936e12, 71e12, ("GeForce RTX 3090",), ("RTX 3090", "3090")),
)  # fmt: skip
GPUS = {
    name: Gpu(name, int(gib * GIB), bandwidth, operations, driver, nick)
    for name, gib, bandwidth, operations, driver, nick in _ROWS
}
#: Cards of another vendor, and their memory in GB: SGLang runs on them, this package does not.
_NOT_NVIDIA = {"mi300x": 192, "mi325x": 256, "mi350x": 288, "mi355x": 288}
AUTO = "auto"


@dataclass(frozen=True)
class Choice:
    """What ``--gpu`` means: a card of the table, or one of which only the memory is known.

    ``name`` is the table's, else the driver's; ``note`` says what is not known of the card.
    """

    gpu: Gpu | None
    name: str
    memory_bytes: int
    note: str | None = None


#: Turing, Volta and before, as `_key` writes them.
_TOO_OLD = re.compile(r"(t4|t10|v100|p100|p40|p4|m60|k80)(?!\d)|gtx|titan|quadrortx|(rtx)?20[678]0")


def choose_gpu(name: str, machine: Callable[[], Sequence[Card]] = cards) -> Choice:
    """The card that a ``--gpu`` means.

    Parameters
    ----------
    name : str
        A name of the table, a nickname such as ``H100``, what ``nvidia-smi`` prints, a value of
        ``nvidia.com/gpu.product``, each in any case, or ``auto``: the cards of this machine.
    machine : callable
        Gives the cards of this machine.

    Raises
    ------
    PlanError
        Unknown, ambiguous, too old, of another vendor, or ``auto`` without cards of one kind.
    """
    if _key(name) == AUTO:
        return _of_this_machine(machine())
    found = _NAMES.get(_key(name))
    if found is not None:
        return Choice(found, found.name, found.memory_bytes)
    key = _key(name)
    other = next((one for one in _NOT_NVIDIA if one in key), None)
    if other is not None:
        raise PlanError(
            f"--gpu {name}: a KV budget needs an NVIDIA card today; for the arithmetic alone, "
            f"--memory-gb {_NOT_NVIDIA[other]}"
        )
    if _TOO_OLD.match(key):
        raise PlanError(
            f"--gpu {name}: of compute capability below 8.0, which a KV budget needs; give a card "
            f"of the Ampere generation or newer"
        )
    sizes = [gpu.name for gpu in GPUS.values() if key and _key(gpu.name).startswith(key)]
    close = difflib.get_close_matches(key, _NAMES, 3, cutoff=0.8)
    near = list(dict.fromkeys(sizes or [_NAMES[one].name for one in close]))[:3]
    if near:
        known = f"did you mean {' or '.join(near)}?"
    else:
        known = f"known: {', '.join(GPUS)}, {AUTO};"
    raise PlanError(f"--gpu {name}: not a known card; {known} --memory-gb N works for any card")


def gpu_called(name: str, memory_bytes: int) -> Gpu | None:
    """The card of the table that CUDA calls `name`, such as ``NVIDIA H100 80GB HBM3``.

    None for a card that is not in the table, or that has another memory by over a tenth.
    """
    found = _NAMES.get(_key(name))
    if found is None or abs(memory_bytes - found.memory_bytes) > found.memory_bytes / 10:
        return None
    return found


def _key(name: str) -> str:
    """A name without what people write differently: case, dashes, blanks, the vendor."""
    return re.sub(r"[^a-z0-9]|nvidia|geforce|tesla", "", name.lower().replace("_", "-"))


def _names() -> dict[str, Gpu]:
    """Every spelling of every card. A card's own name also goes with GB, and, where no other card
    of its kind has another size, without the size."""
    kinds = [re.sub(r"-\d+G$", "", name) for name in GPUS]
    found: dict[str, Gpu] = {}
    for gpu, kind in zip(GPUS.values(), kinds):
        spellings = [gpu.name, f"{gpu.name}B", *gpu.driver_names, *gpu.nicknames]
        if kinds.count(kind) == 1:
            spellings.append(kind)
        found.update({_key(one): gpu for one in spellings})
    return found


_NAMES = _names()


def _of_this_machine(found: Sequence[Card]) -> Choice:
    if not found:
        raise PlanError(
            "--gpu auto: the NVIDIA driver reports no card here; give --gpu NAME or --memory-gb N"
        )
    kinds = sorted({card.name for card in found})
    if len(kinds) > 1:
        raise PlanError(
            f"--gpu auto: this machine has cards of {len(kinds)} kinds, {' and '.join(kinds)}; "
            "give one as --gpu, or set CUDA_VISIBLE_DEVICES"
        )
    memory = min(card.memory_bytes for card in found)
    gpu = gpu_called(kinds[0], memory)
    if gpu is not None:
        return Choice(gpu, gpu.name, gpu.memory_bytes)
    note = (
        f"{kinds[0]} is not in the planner's table: its memory is the driver's figure, "
        "its speed is not known"
    )
    return Choice(None, kinds[0], memory, note)
