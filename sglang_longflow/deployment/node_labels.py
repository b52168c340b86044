# SPDX-License-Identifier: Apache-2.0
"""Where servers may run: the nodes whose cards are those of the plan.

``nvidia.com/gpu.product`` is written by NVIDIA's GPU feature discovery: the driver's name of the
card, with dashes for spaces. It adds a suffix where a card is shared (``-SHARED``, ``-MIG-...``),
which no value here has: part of a card is not what was planned for. The names are the planner's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sglang_longflow.errors import ConfigError
from sglang_longflow.planner.gpus import GPUS

PRODUCT = "nvidia.com/gpu.product"
_NAME = r"[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"([a-z0-9]([-.a-z0-9]{{0,251}}[a-z0-9])?/)?{_NAME}")
_VALUE = re.compile(_NAME)


def products(gpu: str | None) -> tuple[str, ...]:
    """Values of `PRODUCT` for a card of the planner; empty for none, and for other cards."""
    known = GPUS.get(gpu or "")
    names = known.driver_names if known else ()
    return tuple(f"NVIDIA {name}".replace(" ", "-") for name in names)


def affinity(gpu: str | None) -> dict[str, Any]:
    """A pod's affinity for nodes with this card; empty where its label is not known."""
    values = list(products(gpu))
    if not values:
        return {}
    expression = {"key": PRODUCT, "operator": "In", "values": values}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


def node_selector(words: Sequence[str]) -> dict[str, str]:
    """Labels from ``KEY=VALUE`` words.

    Raises
    ------
    ConfigError
        A word is no label, or a key comes twice.
    """
    found: dict[str, str] = {}
    for word in words:
        key, is_pair, value = word.partition("=")
        if not is_pair or not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
            raise ConfigError(
                f"--node-selector {word!r}: expected KEY=VALUE as Kubernetes takes labels, such as "
                f"{PRODUCT}=NVIDIA-L4"
            )
        if key in found:
            raise ConfigError(f"--node-selector {key}: given twice; a label has one value")
        found[key] = value
    return found
