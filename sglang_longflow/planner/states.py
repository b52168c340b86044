# SPDX-License-Identifier: Apache-2.0
"""SGLang's pool of recurrent states, and what it leaves a budget to gain."""

from __future__ import annotations

from dataclasses import dataclass

from sglang_longflow.planner.geometry import ModelGeometry, PlanError
from sglang_longflow.planner.gpus import GIB

MIB = 1 << 20
FASTER = 1.05  # a gain in tokens/s from which a budget that lets nobody in is still of use
#: ``--mamba-full-memory-ratio``'s default: bytes of states by bytes of KV.
MEMORY_RATIO = 0.9


@dataclass(frozen=True)
class StatePool:
    """SGLang's pool of recurrent states on one GPU; there is one slot more, as padding.

    A running request takes ``per_request`` slots of ``slot_bytes`` each.
    """

    slot_bytes: int
    slots: int
    per_request: int

    @property
    def requests(self) -> int:
        """Requests that can run at once."""
        return self.slots // self.per_request

    @property
    def bytes(self) -> int:
        """What the pool takes."""
        return (self.slots + 1) * self.slot_bytes


def state_pool(
    free_bytes: float, slot_bytes: int, per_request: int, slots: int | None = None
) -> StatePool:
    """The pool that SGLang makes of the memory beside the weights.

    Parameters
    ----------
    free_bytes : float
        For states and KV together, on one GPU.
    slot_bytes, per_request : int
        `HybridLayers.state_bytes` and its `slots_per_request`.
    slots : int, optional
        ``--max-mamba-cache-size``; left out, SGLang's default share of the memory.
    """
    if slots is None:
        share = free_bytes * MEMORY_RATIO / (1 + MEMORY_RATIO)
        slots = max(0, int((share - slot_bytes) // slot_bytes))
    return StatePool(slot_bytes, slots, per_request)


def states_of(
    geom: ModelGeometry, slot_bytes: int, free_bytes: float | None, slots: int | None
) -> StatePool | None:
    """SGLang's pool of recurrent states; None without any, and where the memory is not known."""
    if geom.hybrid is None:
        if slots is not None:
            raise PlanError(f"--max-mamba-cache-size {slots}: {geom.name} has no recurrent states")
        return None
    each = geom.hybrid.slots_per_request
    if slots is not None and slots < each:
        raise PlanError(f"--max-mamba-cache-size {slots} is below {each}, what one request takes")
    if free_bytes is None:
        return None if slots is None else StatePool(slot_bytes, slots, each)
    return state_pool(free_bytes, slot_bytes, each, slots)


def check_users(states: StatePool | None, users: int) -> None:
    """Raise PlanError for more users than have room for their recurrent states."""
    if states is not None and users > states.requests:
        raise PlanError(
            f"--users {users} exceeds {states.requests}, all that {states.slots} slots of "
            f"recurrent states let run; give --max-mamba-cache-size {users * states.per_request}"
        )


def refusal_notes(geom: ModelGeometry) -> list[str]:
    """A note on a model that a server does not take."""
    return [f"longflow serve refuses this model: {geom.refused}"] if geom.refused else []


def state_notes(
    states: StatePool | None, free_bytes: float | None, slot_bytes: int, kv_bytes: int,
    full_mean: float, row_tokens: int | None, rows: int | None, users: int | None,
) -> list[str]:  # fmt: skip
    """What recurrent states leave a budget to gain, and how SGLang would share out the memory.

    States, KV of a token and ``free_bytes`` for both are of one GPU.
    """
    if states is None or free_bytes is None:
        return ["the pool of recurrent states is not counted: its size is not known here"]
    request = states.per_request * slot_bytes
    if row_tokens is None or rows is None:
        return []
    bounded, full = request + row_tokens * kv_bytes, request + full_mean * kv_bytes
    notes = [
        f"recurrent states are {request / bounded:.0%} of what a request takes at this budget "
        f"({request / MIB:,.0f} of {bounded / MIB:,.0f} MiB a GPU), and no budget bounds them"
    ]
    if full / bounded < FASTER:
        notes.append("a budget gains next to nothing here, however the memory is shared out")
    best, best_full = (int((free_bytes - slot_bytes) // size) for size in (bounded, full))
    best = best if users is None else min(best, users)
    if best >= FASTER * rows:
        notes.append(
            f"--max-mamba-cache-size {best * states.per_request} shares the memory out for this "
            f"budget: {best:,} at once (full KV at its own best: {best_full:,}); SGLang's default "
            f"gives the states {states.bytes / GIB:.1f} of {free_bytes / GIB:.1f} GiB"
        )
    return notes
