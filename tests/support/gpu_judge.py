# SPDX-License-Identifier: Apache-2.0
"""What judges a GPU server's tokens and victims: the oracle, and bounds from the logged runs.

bf16 rounds scores, so near ties fall either way. The bounds lie just outside the worst of 450
judged answers on H100s and H200s (docs/results/raw/*gpu-tests*), given behind each.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import harness
import longflow_oracle

NOISE_LIMIT = 4.0  # standard deviations of bf16's rounding; worst seen: 2.6
MOST_OTHER_TOKENS = 0.10  # of an answer; worst seen: 0.08
WORST_REGRET = 0.02  # score of a victim over the least one's; worst seen: 0.0136
LEAST_SAME_VICTIMS = 0.93  # of the victims; worst seen: 0.957
LEAST_SAME_CUT = 0.94  # of the tokens that a cut prompt keeps; worst seen: 0.958


class Reference(NamedTuple):
    """The server's bf16 weights, to be computed with in float32 and in bf16."""

    exact: PreTrainedModel
    rounded: PreTrainedModel


def load_reference(folder) -> Reference:
    rounded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).cuda().eval()
    return Reference(copy.deepcopy(rounded).float(), rounded)


def replay(reference: Reference, ids, budget, tokens, **forced):
    """The oracle fed with a server's choices, and how far bf16 moves its margins (rms)."""
    results = [
        longflow_oracle.generate(model, ids, budget, len(tokens), forced_ids=tokens, **forced)
        for model in reference
    ]
    exact, rounded = (torch.tensor(result.margins) for result in results)
    return results[0], (exact - rounded).square().mean().sqrt().item()


def judge(reference, ids, budget, item, trace) -> None:
    """The oracle, fed the server's tokens and evictions, would have chosen the same but for ties.

    Random 16-bit models amplify a different choice between two equally useless slots into other
    tokens, so the choices themselves are judged: each by the oracle's own scores.
    """
    tokens = item["output_ids"]
    row = trace[item["meta_info"]["id"]]
    victims = {int(n): slots for n, slots in row["victims"].items()}
    assert len(victims) >= min(len(ids) + len(tokens) - 1 - budget, len(tokens) - 2)
    result, noise = replay(
        reference, ids, budget, tokens, forced_victims=victims, forced_keep=row["keep"]
    )
    differ = [i for i, token in enumerate(result.output_ids) if token != tokens[i]]
    worst = max((result.margins[i] for i in differ), default=0.0)
    exact = sum(regret == 0 for regret in result.regrets) / max(len(result.regrets), 1)
    kept = min(result.keep_agreement, default=1.0)
    print(
        f"JUDGE prompt={len(ids)} budget={budget}: tokens {len(tokens) - len(differ)}/"
        f"{len(tokens)}, largest margin where they differ {worst:.3f}, {worst / noise:.1f} "
        f"times bf16's noise; "
        f"victims {len(result.regrets)}, arg-min {exact:.1%}, worst regret "
        f"{max(result.regrets, default=0):.4f}; cut agrees {kept:.1%}"
    )
    assert worst < NOISE_LIMIT * noise and len(differ) < MOST_OTHER_TOKENS * len(tokens)
    assert max(result.regrets, default=0) < WORST_REGRET and exact > LEAST_SAME_VICTIMS
    assert kept > LEAST_SAME_CUT


def parting(reference, ids, ours, theirs) -> tuple[int | None, float]:
    """Where two full-KV outputs part, and how clear the reference's choice was there.

    The distance of the two best logits over bf16's noise in it; (None, 0.0) where they are equal.
    """
    first = harness.first_difference(ours, theirs)
    if first is None:
        return None, 0.0
    judged, noise = replay(reference, ids, None, ours)
    return first, judged.margins[first] / noise
