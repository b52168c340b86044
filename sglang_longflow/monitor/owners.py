# SPDX-License-Identifier: Apache-2.0
"""Who owns the slots of the KV pool."""

from __future__ import annotations

from typing import Any


def owners(stats: dict[str, Any]) -> dict[str, int]:
    """Slots by kind of owner; they sum to the pool."""
    pool, rows = stats["pool"], stats["requests"]
    found = {
        "budgeted": sum(row["own_tokens"] for row in rows if row["kv_budget"] > 0),
        "full": sum(row["own_tokens"] for row in rows if row["kv_budget"] == 0),
        "prefill": sum(row["own_tokens"] for row in stats["prefilling"]),
        "held": stats["tree_held_tokens"],
        "evictable": pool["evictable_tokens"],
        "free": pool["available_tokens"],
    }
    return found | {"other": max(0, pool["total_tokens"] - sum(found.values()))}
