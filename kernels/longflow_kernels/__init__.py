# SPDX-License-Identifier: Apache-2.0
"""LongFlow's tensor operations: torch and triton only, no SGLang.

A name is imported when it is first used: `limits` and the rules of ranking, by which settings are
judged, then do not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longflow_kernels.attend_score_evict.reference import attention_mass, removal_scores
    from longflow_kernels.attend_score_evict.rule import Novelty, RankRule
    from longflow_kernels.compress_prompt.reference import (
        pool_scores,
        prompt_mass,
        prompt_scores,
        top_positions,
    )
    from longflow_kernels.limits import COMPARED_TOKENS, HEAD_DIMS, MAX_GROUP
    from longflow_kernels.novelty.level import first_level, next_level
    from longflow_kernels.novelty.recall import (
        RECALL_PACE,
        first_recall,
        next_recall,
        novelty_worth,
        recalled_part,
    )
    from longflow_kernels.novelty.reference import compares, found_similarity

__all__ = [
    "COMPARED_TOKENS",
    "HEAD_DIMS",
    "MAX_GROUP",
    "RECALL_PACE",
    "Novelty",
    "RankRule",
    "attention_mass",
    "compares",
    "first_level",
    "first_recall",
    "found_similarity",
    "next_level",
    "next_recall",
    "novelty_worth",
    "pool_scores",
    "prompt_mass",
    "prompt_scores",
    "recalled_part",
    "removal_scores",
    "top_positions",
]

#: Where each name is, as the imports above say to type checkers.
_HOMES = {
    "attend_score_evict.reference": ("attention_mass", "removal_scores"),
    "attend_score_evict.rule": ("Novelty", "RankRule"),
    "compress_prompt.reference": ("pool_scores", "prompt_mass", "prompt_scores", "top_positions"),
    "limits": ("COMPARED_TOKENS", "HEAD_DIMS", "MAX_GROUP"),
    "novelty.level": ("first_level", "next_level"),
    "novelty.recall": (
        "RECALL_PACE",
        "first_recall",
        "next_recall",
        "novelty_worth",
        "recalled_part",
    ),
    "novelty.reference": ("compares", "found_similarity"),
}


def __getattr__(name):
    """Import a name when it is first used (PEP 562)."""
    from importlib import import_module

    for module, names in _HOMES.items():
        if name in names:
            found = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
