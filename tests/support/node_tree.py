# SPDX-License-Identifier: Apache-2.0
"""Radix tree nodes with counted locks, and what of them would come back: the oracle of `Freed`.

SGLang's own tree counts locks the same way (``component_data[FULL].lock_ref``), but its core may be
in Rust, where nobody can look.
"""

from __future__ import annotations


class Node:
    """`key` holds its tokens; `lock_ref` counts who holds it; the root has no parent."""

    def __init__(self, length, parent=None, locks=0):
        self.key, self.parent, self.lock_ref = [0] * length, parent, locks


def path_to_root(node):
    """The nodes from `node` up to, not including, the root (or nothing without a tree)."""
    while node is not None and node.parent is not None:
        yield node
        node = node.parent


def freed(rows):
    """A `Freed` for rows whose `lock` is the deepest node they hold: let go, count, hold again."""
    slots = []
    for row in rows:
        count = 0
        for node in path_to_root(row.lock):
            node.lock_ref -= 1
            count += len(node.key) if node.lock_ref == 0 else 0
        slots.append(count)
    for row in rows:
        for node in path_to_root(row.lock):
            node.lock_ref += 1
    return slots
