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


def assert_same_but_for_ties(model, ids, budget, item, wanted, trace, **how) -> None:
    """Where a token differs, the server must have taken the other one of two equally useless slots.

    Scores that differ in float32's last bits come out in either order, by the processor's matrix
    kernels, and by how much of the prompt was computed at once. Fed the server's evictions, the
    oracle must say that each was its own choice or such a tie, and then give the server's tokens.
    """
    if item["output_ids"] == wanted:
        return
    row = trace[item["meta_info"]["id"]]
    judged = oracle_of(model).generate(
        model,
        ids,
        budget,
        len(wanted),
        forced_ids=item["output_ids"],
        forced_victims={int(n): slots for n, slots in row["victims"].items()},
        forced_keep=row["keep"],
        **how,
    )
    assert judged.output_ids == item["output_ids"]
    # Two scores may also be the same number: a regret of 0, and another slot than the oracle's.
    ties = [regret for regret in judged.regrets if regret]
    assert max(ties, default=0.0) < 1e-5 and len(ties) <= 3, ties
    assert min(judged.keep_agreement, default=1.0) == 1.0
