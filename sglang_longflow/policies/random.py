# SPDX-License-Identifier: Apache-2.0
"""Random eviction: the floor that any score has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from sglang_longflow.policies.base import Policy

_MASK = (1 << 64) - 1


def _mix(number: int) -> int:
    """64 well-mixed bits of a number (the finaliser of SplitMix64)."""
    number = (number + 0x9E3779B97F4A7C15) & _MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)


@lru_cache(maxsize=64)
def _drawn(budget_tokens: int, sinks: int, recent: int) -> list[int]:
    """Victims of a row, one for each overwrite; grown by `Random.known_victim`."""
    return []


@dataclass(frozen=True)
class Random(Policy):
    """Overwrite a slot drawn at random among those that are not protected.

    A draw depends on how many tokens the row has overwritten and on its budget, on nothing else: a
    request gives the same tokens every time, and all layers give up the same token. A prompt over
    budget - 1 is cut by SnapKV's pick as under `longflow`, so only decoding is random.
    """

    name: ClassVar[str] = "random"

    def known_victim(self, budget_tokens: int, overwrites: int) -> int:
        sinks, recent = self.protect_sink_tokens, self.protect_recent_tokens
        drawn = _drawn(budget_tokens, sinks, recent)
        while len(drawn) <= overwrites:
            written = len(drawn)
            # The last tokens of the row as it filled, then what was overwritten since.
            late = set(range(budget_tokens - max(0, recent - written), budget_tokens))
            late.update(drawn[max(0, written - recent) :])
            attempt = written << 32
            while (victim := sinks + _mix(attempt) % (budget_tokens - sinks)) in late:
                attempt += 1
            drawn.append(victim)
        return drawn[overwrites]
