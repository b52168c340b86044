# SPDX-License-Identifier: Apache-2.0
"""The tokens that the independent oracle expects of a model in a folder."""

from __future__ import annotations

import torch

import longflow_oracle


def load(folder):
    """The model in float32, from Hugging Face."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def expected(model, ids, budget, new_tokens, **options):
    """The oracle's greedy tokens."""
    return longflow_oracle.generate(model, ids, budget, new_tokens, **options).output_ids
