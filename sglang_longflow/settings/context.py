# SPDX-License-Identifier: Apache-2.0
"""A model's longest context, and budgets that no row of it can reach. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sglang_longflow.settings.config import LongFlowConfig
from sglang_longflow.settings.problem import Problem
from sglang_longflow.settings.refused_models import language_model

#: Where SGLang looks for the longest context, in this order.
_CONTEXT_FIELDS = (
    *("max_sequence_length", "seq_length", "max_seq_len", "model_max_length"),
    "max_position_embeddings",
)


def budget_problems(config: LongFlowConfig, context_tokens: int | None) -> list[Problem]:
    """Budgets over the longest context: no row gets there, so nothing is ever overwritten."""
    if context_tokens is None or config.row_tokens(1 << 60) <= context_tokens:
        return []
    if config.kv_budget > context_tokens:
        what = (
            f"kv_budget={config.kv_budget}: over the model's context of {context_tokens} tokens, "
            f"so nothing would ever be overwritten"
        )
        return [Problem(what, f"set --kv-budget below {context_tokens}, or 0 for full KV")]
    if config.kv_budget_max is not None and config.kv_budget_max > context_tokens:
        what = (
            f"kv_budget_max={config.kv_budget_max}: over the model's context of {context_tokens} "
            f"tokens, which no request can fill"
        )
        return [Problem(what, f"set --kv-budget-max {context_tokens} at most")]
    return []


def context_tokens(model: Mapping[str, Any]) -> int | None:
    """Longest context of a ``config.json``, as SGLang derives it; None where it does not say.

    SGLang: ``utils/hf_transformers/common.get_context_length``.
    """
    text = language_model(model)
    rope = text.get("rope_scaling") or text.get("rope_parameters")
    factor = 1.0
    if isinstance(rope, Mapping):
        factor = rope.get("factor") or 1.0
        kind = rope.get("rope_type", rope.get("type"))
        if "original_max_position_embeddings" in rope or kind == "llama3":
            factor = 1.0
    for field in _CONTEXT_FIELDS:
        if (value := text.get(field)) is not None:
            numbers = isinstance(value, int) and isinstance(factor, int | float)
            try:
                return int(factor * value) if numbers else None
            except (OverflowError, ValueError):  # JSON may say Infinity and NaN
                return None
    return None
