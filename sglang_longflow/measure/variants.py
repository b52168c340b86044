# SPDX-License-Identifier: Apache-2.0
"""What is compared: a policy with its protections, and which of them share a server."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from sglang_longflow.errors import ConfigError
from sglang_longflow.planner.runs import variant_name
from sglang_longflow.policies import make_policy
from sglang_longflow.settings.config import unknown_policy
from sglang_longflow.settings.flags import MIN_BUDGET_TOKENS

FULL = "full"


@dataclass(frozen=True)
class Variant:
    """A policy and the tokens that a server protects for it.

    Attributes
    ----------
    policy : str
        Name of a policy, or "full" for full KV.
    sinks, recent : int
        ``kv_protect_sink_tokens`` and ``kv_protect_recent_tokens``.
    """

    policy: str
    sinks: int = 0
    recent: int = 0

    @property
    def name(self) -> str:
        """As `parse_variant` reads it."""
        return variant_name(self.policy, self.sinks, self.recent)

    @property
    def server(self) -> tuple[str, int, int]:
        """(--kv-policy, sinks, recent) of the server that can serve it."""
        if self.policy == FULL:
            return "longflow", 0, 0
        policy = make_policy(self.policy)
        shared = policy.is_fused and not policy.needs.any
        return "longflow" if shared else self.policy, self.sinks, self.recent


def parse_variant(text: str, setting: str = "policies") -> Variant:
    """Read ``longflow``, or ``streaming:sinks=4,recent=8``; errors name the `setting`.

    Raises
    ------
    ConfigError
        An unknown policy or option, or a value that is no number.
    """
    policy, _, options = text.partition(":")
    if wrong := unknown_policy(policy):
        raise ConfigError(f"{setting}={text!r}: {wrong}")
    values = {}
    for option in filter(None, options.split(",")):
        name, _, value = option.partition("=")
        if name not in ("sinks", "recent") or not value.isdecimal():
            raise ConfigError(f"{setting}={text!r}: expected sinks=N or recent=N, not {option!r}")
        values[name] = int(value)
    return Variant(policy, **values)


def budget_text(budget: int) -> str:
    """A budget as it is shown; 0 is full KV."""
    return f"{budget:,}" if budget else FULL


def point_title(variant: str, budget: int) -> str:
    """A variant at a budget as progress shows it; `variant` is its name."""
    return f"{variant}, {budget:,}" if budget else variant


#: A variant, a budget, and which questions are to be asked there.
WorkItem = tuple[Variant, int, list[tuple[int, ...]]]


def parse_budget(text: str, mean_chain_tokens: float | None) -> int:
    """Tokens of ``300``, ``20%`` (of the mean reference chain), or ``full`` (0).

    Raises
    ------
    ConfigError
        Neither a positive number, a percentage, nor "full"; or a share of too few tokens.
    """
    if text == FULL:
        return 0
    number = text.removesuffix("%")
    if not number.isdecimal() or int(number) == 0:
        raise ConfigError(f"budgets={text!r}: expected tokens, a percentage such as 20%, or full")
    if text.endswith("%"):
        if mean_chain_tokens is None:
            raise ConfigError(
                f"budgets={text!r}: this task has no reference chains to take a share of; give "
                f"tokens"
            )
        tokens = round(int(number) / 100 * mean_chain_tokens)
        if tokens < MIN_BUDGET_TOKENS:
            raise ConfigError(
                f"budgets={text!r}: {tokens} of {mean_chain_tokens:.0f} tokens, below the minimum "
                f"{MIN_BUDGET_TOKENS}; give a larger share"
            )
        return tokens
    return int(number)


def plan(
    variants: list[Variant],
    budgets: list[int],
    wanted: Sequence[tuple[int, ...]],
    done: Set[tuple[Any, ...]],
) -> list[WorkItem]:
    """What is left of `wanted` for each (variant, budget), those that share a server together.

    `wanted` are the last parts of a record's key, after variant and budget.
    """
    points = [(Variant(FULL), 0)] if 0 in budgets else []
    points += [(variant, budget) for variant in variants for budget in budgets if budget]
    parts = []
    for variant, budget in points:
        left = [which for which in wanted if (variant.name, budget, *which) not in done]
        if left:
            parts.append((variant, budget, left))
    return sorted(parts, key=lambda part: part[0].server)
