# SPDX-License-Identifier: Apache-2.0
"""The tokens that the independent oracle expects of a model in a folder."""

from __future__ import annotations

import torch

import hybrid_oracle
import longflow_oracle


def load(folder):
    """The model in float32, from Hugging Face."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def expected(model, ids, budget, new_tokens, **options):
    """The oracle's greedy tokens."""
    return oracle_of(model).generate(model, ids, budget, new_tokens, **options).output_ids


def oracle_of(model):
    """The module whose `generate` knows the model."""
    dense = model.config.model_type in longflow_oracle.SUPPORTED_MODEL_TYPES
    return longflow_oracle if dense else hybrid_oracle
