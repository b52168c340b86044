# SPDX-License-Identifier: Apache-2.0
"""A fixed KV budget per request inside SGLang. Importing this package has no effect.

`__all__` is the public API (docs/reference/api.md); everything else may change in any release. A
name is imported when it is first used: this package alone imports neither torch nor SGLang.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang_longflow.client.budget import Budget
    from sglang_longflow.client.engine import Engine
    from sglang_longflow.client.frontend import BudgetedEndpoint, budgeted, gen, kv_budget
    from sglang_longflow.errors import ConfigError, LongFlowError, NoAnswer, WatchError
    from sglang_longflow.monitor.client import Stats, stats
    from sglang_longflow.planner.api import plan
    from sglang_longflow.planner.geometry import PlanError
    from sglang_longflow.planner.plan import Plan

__version__ = "0.3.0"

__all__ = [
    "Budget",
    "BudgetedEndpoint",
    "ConfigError",
    "Engine",
    "LongFlowError",
    "NoAnswer",
    "Plan",
    "PlanError",
    "Stats",
    "WatchError",
    "__version__",
    "budgeted",
    "gen",
    "kv_budget",
    "plan",
    "stats",
]

#: Where each public name is, as the imports above say to type checkers.
_HOMES = {
    "client.budget": ("Budget",),
    "client.engine": ("Engine",),
    "client.frontend": ("BudgetedEndpoint", "budgeted", "gen", "kv_budget"),
    "errors": ("ConfigError", "LongFlowError", "NoAnswer", "WatchError"),
    "monitor.client": ("Stats", "stats"),
    "planner.api": ("plan",),
    "planner.geometry": ("PlanError",),
    "planner.plan": ("Plan",),
}


if not TYPE_CHECKING:  # type checkers take a name that is not in the list for the mistake it is

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used (PEP 562)."""
        from importlib import import_module

        for module, names in _HOMES.items():
            if name in names:
                found = getattr(import_module(f"{__name__}.{module}"), name)
                globals()[name] = found
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
