# SPDX-License-Identifier: Apache-2.0
"""SGLang's radix tree as the accounting asks it: what of it would come back if rows let go.

The tree's core may be in Rust, where a node is a number and nobody can look at its locks. But it
counts what is evictable, which changes by what was held by one holder alone. So rows let go for a
moment, are counted, and hold again: nothing is evicted in between, and locks carry no order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_longflow.core.rows import Freed, ResidentRow


def freed_by(tree: Any) -> Freed:
    """What the rows' holds on ``UnifiedRadixCache`` `tree` keep from eviction (see `Freed`)."""

    def freed(rows: Sequence[ResidentRow]) -> list[int]:
        return freed_locks(tree, [row.lock for row in rows])

    return freed


def freed_locks(tree: Any, locks: Sequence[Any]) -> list[int]:
    """Slots that become evictable as each ``TreeLock`` (None: no hold) is given up in turn.

    All are held again when it returns, also if SGLang raises: a lock that could not be taken again
    would let a running request's slots be evicted.
    """
    slots, released = [], []
    evictable = tree.evictable_size()
    try:
        for lock in locks:
            if lock is not None:
                tree.unlock(lock)
                released.append(lock)
            now = tree.evictable_size()
            slots.append(now - evictable)
            evictable = now
    finally:
        for lock in released:
            lock.receipt = tree.lock(lock.node, lock.receipt.skipped_lock_components).receipt
    return slots


def held_alone(tree: Any, node: Any) -> int:
    """Slots on the path to `node` that nobody holds yet."""
    evictable = tree.evictable_size()
    lock = tree.lock(node)
    try:
        return int(evictable - tree.evictable_size())
    finally:
        tree.unlock(lock)
