# SPDX-License-Identifier: Apache-2.0
"""Release: what a request reports when it streams or ends."""

from __future__ import annotations

from dataclasses import dataclass

from sglang_longflow.core.contracts import KVRow


@dataclass(frozen=True)
class RowReport:
    """Counts for ``meta_info``; resident + cut + overwritten is the request's K/V length.

    Attributes
    ----------
    kv_budget : int
        0 for full KV.
    kv_resident_tokens, kv_overwritten_tokens, kv_cut_tokens : int
    kv_policy : str
    """

    kv_budget: int
    kv_resident_tokens: int
    kv_overwritten_tokens: int
    kv_cut_tokens: int
    kv_policy: str


def report(row: KVRow, prompt_tokens: int, output_tokens: int) -> RowReport:
    """Counts after `output_tokens` tokens have been produced.

    The K/V of the last produced token is not stored. Overlap scheduling launches one step beyond
    the end of a request; that step is not reported.
    """
    stored = prompt_tokens + max(output_tokens - 1, 0)
    resident = row.budget.resident(stored - row.cut_tokens)
    return RowReport(
        kv_budget=row.budget.tokens,
        kv_resident_tokens=resident,
        kv_overwritten_tokens=min(row.overwritten_tokens, stored - row.cut_tokens - resident),
        kv_cut_tokens=row.cut_tokens,
        kv_policy=row.budget.policy.name,
    )
