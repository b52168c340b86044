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
from token_oracle import oracle_of

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
    generate = oracle_of(reference.exact).generate
    results = [
        generate(model, ids, budget, len(tokens), forced_ids=tokens, **forced)
        for model in reference
    ]
    exact, rounded = (torch.tensor(result.margins) for result in results)
    return results[0], (exact - rounded).square().mean().sqrt().item()


class Judged(NamedTuple):
    """How far one answer's choices are from those of the oracle that was fed with them."""

    other_tokens: float  # share of the answer's tokens
    worst_margin: float  # largest margin where they differ, in units of bf16's noise
    worst_regret: float  # score of a victim over the least one's
    same_victims: float  # share that is the arg-min
    same_cut: float  # share of the prompt's kept tokens


def compare(reference, ids, budget, tokens, victims, keep) -> Judged:
    """The oracle in float32, fed with `tokens`, `victims` by overwrite and `keep` by layer."""
    result, noise = replay(reference, ids, budget, tokens, forced_victims=victims, forced_keep=keep)
    differ = [i for i, token in enumerate(result.output_ids) if token != tokens[i]]
    found = Judged(
        len(differ) / len(tokens),
        max((result.margins[i] for i in differ), default=0.0) / noise,
        max(result.regrets, default=0.0),
        sum(regret == 0 for regret in result.regrets) / max(len(result.regrets), 1),
        min(result.keep_agreement, default=1.0),
    )
    print(
        f"JUDGE prompt={len(ids)} budget={budget}: tokens {len(tokens) - len(differ)}/"
        f"{len(tokens)}, largest margin where they differ {found.worst_margin * noise:.3f}, "
        f"{found.worst_margin:.1f} times bf16's noise; victims {len(result.regrets)}, arg-min "
        f"{found.same_victims:.1%}, worst regret {found.worst_regret:.4f}; "
        f"cut agrees {found.same_cut:.1%}"
    )
    return found


def of_server(reference, ids, budget, item, trace) -> Judged:
    """What `compare` finds in a server's answer; nearly every victim must be on record."""
    tokens = item["output_ids"]
    row = trace[item["meta_info"]["id"]]
    victims = {int(n): slots for n, slots in row["victims"].items()}
    assert len(victims) >= min(len(ids) + len(tokens) - 1 - budget, len(tokens) - 2)
    return compare(reference, ids, budget, tokens, victims, row["keep"])


def of_rounding(reference, ids, budget, new_tokens) -> Judged:
    """The same of the oracle itself in bf16: what is nobody's fault."""
    result = oracle_of(reference.rounded).generate(reference.rounded, ids, budget, new_tokens)
    full = [slots for slots in result.victims if slots[0] is not None and slots[0] >= 0]
    keep = result.keep if any(result.keep) else None
    return compare(reference, ids, budget, result.output_ids, dict(enumerate(full)), keep)


def judge(reference, ids, budget, item, trace) -> None:
    """The oracle, fed the server's tokens and evictions, would have chosen the same but for ties.

    Random 16-bit models amplify a different choice between two equally useless slots into other
    tokens, so the choices themselves are judged: each by the oracle's own scores.
    """
    found = of_server(reference, ids, budget, item, trace)
    assert found.worst_margin < NOISE_LIMIT and found.other_tokens < MOST_OTHER_TOKENS
    assert found.worst_regret < WORST_REGRET and found.same_victims > LEAST_SAME_VICTIMS
    assert found.same_cut > LEAST_SAME_CUT


def judge_beside_rounding(server: list[Judged], rounding: list[Judged]) -> None:
    """Of models that amplify rounding more than `judge` allows, such as routers and states do.

    The server's answers may be little further from the oracle in float32 than the oracle in bf16
    is. A wrong slot shows at once: with victims shifted by one step 2 % of them were the arg-min.
    """

    def mean(judged: list[Judged], name: str) -> float:
        return sum(getattr(one, name) for one in judged) / len(judged)

    def worst(judged: list[Judged], name: str) -> float:
        return max(getattr(one, name) for one in judged)

    assert mean(server, "other_tokens") < mean(rounding, "other_tokens") + 0.06
    assert mean(server, "same_victims") > mean(rounding, "same_victims") - 0.10
    assert mean(server, "same_cut") > mean(rounding, "same_cut") - 0.04
    assert worst(server, "worst_margin") < max(4 * worst(rounding, "worst_margin"), 12.0)
    assert worst(server, "worst_regret") < max(4 * worst(rounding, "worst_regret"), 0.5)


def parting(reference, ids, ours, theirs) -> tuple[int | None, float]:
    """Where two full-KV outputs part, and how clear the reference's choice was there.

    The distance of the two best logits over bf16's noise in it; (None, 0.0) where they are equal.
    """
    first = harness.first_difference(ours, theirs)
    if first is None:
        return None, 0.0
    judged, noise = replay(reference, ids, None, ours)
    return first, judged.margins[first] / noise
