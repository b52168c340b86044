# SPDX-License-Identifier: Apache-2.0
"""How large the KV pool may be on a CPU, where it shares the memory with everything else.

SGLang would take most of the free memory, and the kernel would then kill some process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sglang_longflow.planner.geometry import (
    ModelGeometry,
    PlanError,
    kv_bytes_per_token,
    load_geometry,
)
from sglang_longflow.planner.weights import weights_bytes
from sglang_longflow.server.free_memory import Free

#: The pool gets one part in this many of what is free beside weights and processes.
SHARES = 4
#: What a server's three processes take before weights and pool.
PROCESSES_BYTES = 3 << 30
#: If weights seem to take everything, one part in this many of what is free is divided.
LEAST_SHARE = 8
#: SGLang allocates a step ahead, and wants a pool that is larger than its longest request.
REQUEST_SLACK_TOKENS = 16


@dataclass(frozen=True)
class PoolCap:
    """A pool's size, and why."""

    tokens: int
    reason: str


def tokens_for(requests: int, longest_tokens: int) -> int:
    """KV slots that this many requests need at once with full KV, each up to that length."""
    return requests * (longest_tokens + REQUEST_SLACK_TOKENS) + REQUEST_SLACK_TOKENS


def cap_pool(
    values: dict[str, Any],
    dtype: str,
    free: Free,
    most_tokens: int | None = None,
    model_geometry: ModelGeometry | None = None,
) -> PoolCap:
    """The pool that a server on a CPU gets where the operator has not set it.

    Parameters
    ----------
    values : dict
        Server arguments by field; the model and the cache's dtype are read.
    dtype : str
        Of the model as it will run.
    free : Free
        What `free_memory` found.
    most_tokens : int, optional
        What all requests at once need at most.
    model_geometry : ModelGeometry, optional
        Of ``model_path``, if it has been read.

    Raises
    ------
    PlanError
        The model's shape is not known here.
    """
    geometry = model_geometry or load_geometry(values["model_path"], values.get("revision"))
    cache_dtype = str(values.get("kv_cache_dtype") or "auto")
    kind = "fp8_e4m3" if cache_dtype.startswith("fp8") else "auto"
    token_bytes = kv_bytes_per_token(geometry, 1, kind, dtype)
    try:
        taken = weights_bytes(geometry, dtype) + PROCESSES_BYTES
    except PlanError:  # quantized, not downloaded yet: the least share below is for this too
        taken = PROCESSES_BYTES
    room = max(free.bytes - taken, free.bytes // LEAST_SHARE) // SHARES
    tokens = max(1, room // token_bytes)
    where = "free memory" if free.limit == "memory" else f"what the {free.limit} leaves"
    if most_tokens is not None and most_tokens <= tokens:
        return PoolCap(most_tokens, "what all requests at once need")
    return PoolCap(tokens, f"capped by {where}, {free.bytes / 1e9:.1f} GB")
