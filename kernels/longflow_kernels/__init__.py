# SPDX-License-Identifier: Apache-2.0
"""LongFlow's tensor operations: torch and triton only, no SGLang."""

from longflow_kernels.attend_score_evict.arguments import Novelty, RankRule
from longflow_kernels.attend_score_evict.reference import attention_mass, removal_scores
from longflow_kernels.compress_prompt.reference import (
    pool_scores,
    prompt_mass,
    prompt_scores,
    top_positions,
)
from longflow_kernels.novelty.level import first_level, next_level
from longflow_kernels.novelty.recall import (
    RECALL_PACE,
    first_recall,
    next_recall,
    novelty_worth,
    recalled_part,
)
from longflow_kernels.novelty.reference import COMPARED_TOKENS, compares, found_similarity

__all__ = [
    "COMPARED_TOKENS",
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
