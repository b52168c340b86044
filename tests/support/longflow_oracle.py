# SPDX-License-Identifier: Apache-2.0
"""Plain-PyTorch oracle for the fixed-budget KV cache with the LongFlow rule (arXiv 2603.11504).

Written independently of the package under test: it imports torch, transformers and the standard
library only, and favours being easy to read over being fast. One sequence, greedy decoding.

Vocabulary: a *row* is the list of resident KV slots of one layer. A token's *position* is its
index in prompt + output; it never changes, also not when the token moves to another row index.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

SUPPORTED_MODEL_TYPES = ("llama", "qwen2", "qwen3", "mistral")
POLICIES = ("longflow", "streaming", "tova", "random")


@dataclass(frozen=True)
class OracleResult:
    """What one greedy run produced.

    output_ids: the argmax at every generated position (also under teacher forcing).
    margins: top-1 minus top-2 logit at every generated position.
    kv_lens: resident length after each decode step. The first token comes from the prefill, so
        there is one entry fewer than there are output tokens.
    victims: victims[step][layer] is the row index chosen at the end of that decode step, to be
        overwritten by the next one; -1 while the row is not full. None without a budget.
    regrets: for every forced victim, how much higher its score is than the row's lowest, as a
        share of the row's median score (0 where it is the arg-min).
    keep_agreement: for every forced cut, the share of positions our own cut would have kept too.
    """

    output_ids: list[int]
    margins: list[float]
    kv_lens: list[int]
    victims: list[list[int]] | None
    regrets: list[float] = field(default_factory=list)
    keep_agreement: list[float] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------
# Pure helpers
# ---------------------------------------------------------------------------------------------


def removal_scores(alpha: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """LongFlow score of every row slot: mean over heads and channels of |alpha_hi * v_(h//G)id|.

    alpha: [query heads, n] softmax probabilities; v: [kv heads, n, head_dim]. Returns [n].
    """
    group = alpha.shape[0] // v.shape[0]
    per_head = v.float().repeat_interleave(group, dim=0)  # [query heads, n, head_dim]
    contribution = alpha.float().unsqueeze(-1) * per_head
    return contribution.abs().mean(dim=(0, 2))


def choose_victim(
    scores: Sequence[float], positions: Sequence[int], sinks: int = 0, recent: int = 0
) -> int:
    """Row index of the lowest score; ties go to the lowest index.

    Never a row index below `sinks`, never one of the `recent` most recently written tokens.
    Tokens are written in position order, so the newest are those of the highest position.
    """
    if len(scores) != len(positions):
        raise ValueError(f"{len(scores)} scores for {len(positions)} slots")
    newest = sorted(range(len(positions)), key=lambda i: positions[i], reverse=True)[:recent]
    candidates = [i for i in range(sinks, len(positions)) if i not in newest]
    if not candidates:
        raise ValueError("every slot of the row is protected")
    return min(candidates, key=lambda i: (scores[i], i))


def split_mix(state: int) -> int:
    """The output function of SplitMix64 (Steele, Lea, Flood 2014) for one state."""
    width = 2**64
    z = (state + 0x9E3779B97F4A7C15) % width
    z = (z ^ (z // 2**30)) * 0xBF58476D1CE4E5B9 % width
    z = (z ^ (z // 2**27)) * 0x94D049BB133111EB % width
    return z ^ (z // 2**31)


def random_victim(step: int, positions: Sequence[int], sinks: int = 0, recent: int = 0) -> int:
    """Row index that "random" gives up after `step` overwrites: the first draw that may go."""
    newest = sorted(range(len(positions)), key=lambda i: positions[i], reverse=True)[:recent]
    draw = step * 2**32
    while True:
        index = sinks + split_mix(draw) % (len(positions) - sinks)
        if index not in newest:
            return index
        draw += 1


def snapkv_keep(
    q_window: torch.Tensor,
    k: torch.Tensor,
    keep: int,
    *,
    scale: float | None = None,
    kernel: int = 5,
    sinks: int = 0,
) -> list[int]:
    """The `keep` prompt positions that survive the cut, ascending.

    q_window: [query heads, window, head_dim], the last queries of the prompt, after RoPE;
    k: [kv heads, prompt length, head_dim], after RoPE. The window positions are always kept, and
    so are positions 0..sinks-1. Equal pooled scores go to the lower position.
    """
    heads, window, head_dim = q_window.shape
    kv_heads, prompt_len, _ = k.shape
    n_earlier = prompt_len - window
    n_pick = keep - window
    if not 0 <= sinks <= n_pick <= n_earlier:
        raise ValueError(
            f"cannot keep {keep} of {prompt_len} tokens with a window of {window} and {sinks} sinks"
        )
    if scale is None:
        scale = 1.0 / math.sqrt(head_dim)
    earlier = k[:, :n_earlier].float().repeat_interleave(heads // kv_heads, dim=0)
    logits = torch.matmul(q_window.float(), earlier.transpose(1, 2)) * scale
    votes = torch.softmax(logits, dim=-1).sum(dim=(0, 1))  # [n_earlier]
    pooled = F.avg_pool1d(votes[None, None], kernel, stride=1, padding=kernel // 2)[0, 0].tolist()
    ranked = sorted(range(sinks, n_earlier), key=lambda i: (-pooled[i], i))
    picked = list(range(sinks)) + ranked[: n_pick - sinks]
    return sorted(picked) + list(range(n_earlier, prompt_len))


def streaming_keep(prompt_len: int, keep: int, sinks: int = 0) -> list[int]:
    """Prompt positions that survive the cut under "streaming": the sinks and the last ones."""
    return list(range(sinks)) + list(range(prompt_len - (keep - sinks), prompt_len))


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x [heads, n, head_dim] (half-split layout) by cos, sin [n, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention in float32.

    q: [query heads, t, head_dim], k and v: [kv heads, n, head_dim].
    Returns the output [t, query heads * head_dim] and the probabilities [query heads, t, n].
    """
    heads, t, head_dim = q.shape
    kv_heads, n, _ = k.shape
    grouped = q.float().reshape(kv_heads, (heads // kv_heads) * t, head_dim)
    logits = (torch.matmul(grouped, k.float().transpose(1, 2)) * scale).reshape(heads, t, n)
    if causal:
        future = torch.ones(t, n, dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(future, float("-inf"))
    alpha = torch.softmax(logits, dim=-1)
    out = torch.matmul(alpha.reshape(kv_heads, (heads // kv_heads) * t, n), v.float())
    out = out.reshape(heads, t, head_dim).transpose(0, 1).reshape(t, heads * head_dim)
    return out.to(q.dtype), alpha


# ---------------------------------------------------------------------------------------------
# The cache row of one layer, and the layer loop
# ---------------------------------------------------------------------------------------------


class Ranking(Protocol):
    """Picks the victims of one layer's row; `tests/policies/reference_rankings.py` has them."""

    queries: list[torch.Tensor]

    def fill(self, k: torch.Tensor, v: torch.Tensor) -> None: ...
    def step(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> int: ...


class Row:
    """Resident slots of one layer, in row order."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.positions: list[int] = []
        self.victim = -1
        self._k: torch.Tensor | None = None  # [kv heads, capacity, head_dim]
        self._v: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def k(self) -> torch.Tensor:
        return self._k[:, : len(self)]

    @property
    def v(self) -> torch.Tensor:
        return self._v[:, : len(self)]

    def fill(self, k: torch.Tensor, v: torch.Tensor, positions: list[int]) -> None:
        assert len(positions) <= self.capacity
        kv_heads, _, head_dim = k.shape
        self._k = k.new_zeros(kv_heads, self.capacity, head_dim)
        self._v = v.new_zeros(kv_heads, self.capacity, head_dim)
        self.positions = list(positions)
        index = torch.tensor(positions, device=k.device)
        self._k[:, : len(self)] = k[:, index]
        self._v[:, : len(self)] = v[:, index]

    def write(self, k: torch.Tensor, v: torch.Tensor, position: int) -> None:
        """Store one token, k and v [kv heads, 1, head_dim]: append, or overwrite the victim."""
        if len(self) < self.capacity:
            slot = len(self)
            self.positions.append(position)
        else:
            slot = self.victim
            assert 0 <= slot < self.capacity, "a full row without a victim"
            self.positions[slot] = position
        self._k[:, slot] = k[:, 0]
        self._v[:, slot] = v[:, 0]
        self.victim = -1


class _Decoder:
    """The model's weights, driven by a layer loop of our own."""

    def __init__(self, model: PreTrainedModel):
        config = model.config
        if config.model_type not in SUPPORTED_MODEL_TYPES:
            raise ValueError(f"model type {config.model_type!r} is not one this oracle knows")
        self.model = model
        self.layers = list(model.model.layers)[: config.num_hidden_layers]
        self.device = model.model.embed_tokens.weight.device

    def check_length(self, total: int) -> None:
        """Refuse a run in which a sliding window of the model would come into play."""
        config = self.model.config
        for layer in self.layers:
            attn = layer.self_attn
            window = getattr(attn, "sliding_window", None)
            if config.model_type == "mistral":
                window = config.sliding_window
            if window is not None and total > window:
                raise ValueError(f"sliding-window attention ({window}) is not supported")

    def embed(self, ids: list[int], first: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Hidden states [n, hidden] and cos, sin [n, head_dim] of tokens at position first, ..."""
        hidden = self.model.model.embed_tokens(torch.tensor(ids, device=self.device))
        position_ids = torch.arange(first, first + len(ids), device=self.device)[None]
        cos, sin = self.model.model.rotary_emb(hidden[None], position_ids)
        return hidden, cos[0], sin[0]

    @staticmethod
    def qkv(layer, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor):
        """q, k (both after RoPE) and v, each [heads, n, head_dim]."""
        attn = layer.self_attn
        x = layer.input_layernorm(hidden)
        shape = (x.shape[0], -1, attn.head_dim)
        q = attn.q_proj(x).view(shape)
        k = attn.k_proj(x).view(shape)
        v = attn.v_proj(x).view(shape)
        if getattr(attn, "q_norm", None) is not None:
            q = attn.q_norm(q)
        if getattr(attn, "k_norm", None) is not None:
            k = attn.k_norm(k)
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        return apply_rope(q, cos, sin), apply_rope(k, cos, sin), v

    @staticmethod
    def finish_layer(layer, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        hidden = hidden + layer.self_attn.o_proj(attended)
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Next-token logits after the last of hidden [n, hidden], in float32."""
        return self.model.lm_head(self.model.model.norm(hidden[-1:]))[0].float()


def validate(prompt_len, budget, max_new_tokens, sinks, recent, policy, window, kernel, forced):
    if policy not in POLICIES:
        raise ValueError(f"policy {policy!r}: expected one of {POLICIES}")
    if prompt_len < 1:
        raise ValueError("an empty prompt")
    if max_new_tokens < 1:
        raise ValueError("max_new_tokens must be at least 1")
    if sinks < 0 or recent < 0:
        raise ValueError("the protected counts cannot be negative")
    if window < 1 or kernel < 1 or kernel % 2 == 0:
        raise ValueError("window must be positive, and kernel positive and odd")
    if forced is not None and len(forced) < max_new_tokens - 1:
        raise ValueError(f"{len(forced)} forced tokens for {max_new_tokens} new tokens")
    if budget is None:
        return
    if budget < 2:
        raise ValueError("a budget needs at least 2 slots")
    if policy != "streaming" and sinks + recent >= budget:
        raise ValueError("the protected tokens fill the whole budget")
    if policy == "streaming" and sinks >= budget - 1:
        raise ValueError("the sinks fill the whole budget")
    if policy != "streaming" and prompt_len > budget - 1 and budget - 1 < window + sinks:
        raise ValueError(f"budget {budget} cannot hold the window ({window}) and {sinks} sinks")


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompt_ids: list[int],
    budget: int | None,
    max_new_tokens: int,
    *,
    eos_ids: Iterable[int] = (),
    protect_sink_tokens: int = 0,
    protect_recent_tokens: int = 0,
    policy: str = "longflow",
    window: int = 32,
    kernel: int = 5,
    forced_ids: list[int] | None = None,
    forced_victims: dict[int, list[int]] | None = None,
    forced_keep: list[list[int]] | None = None,
    ranking: Callable[[], Ranking] | None = None,
) -> OracleResult:
    """Greedy decoding of one sequence with at most `budget` resident slots a layer.

    With `forced_ids`, token t of the output is fed as forced_ids[t], and output_ids still holds
    our own argmax. With `forced_victims`, forced_victims[n][layer] is the row index that the row
    gives up after n overwrites, and with `forced_keep`, forced_keep[layer] are the positions that
    survive the cut; how far our own choice was from them is recorded. With `ranking`, one object
    of its kind for each layer picks the victims instead of `policy`. The run ends after
    max_new_tokens, or after a fed (or final) token that is in `eos_ids`.
    """
    prompt_ids = [int(i) for i in prompt_ids]
    prompt_len = len(prompt_ids)
    sinks, recent = protect_sink_tokens, protect_recent_tokens
    validate(prompt_len, budget, max_new_tokens, sinks, recent, policy, window, kernel, forced_ids)
    eos = {int(i) for i in eos_ids}
    decoder = _Decoder(model)
    decoder.check_length(prompt_len + max_new_tokens)

    capacity = prompt_len + max_new_tokens if budget is None else budget
    rows = [Row(capacity) for _ in decoder.layers]
    rankings = [ranking() if ranking else None for _ in decoder.layers]

    # Prefill: causal attention over the whole prompt; the cut happens afterwards, per layer.
    regrets: list[float] = []
    keep_agreement: list[float] = []
    full_steps = 0
    hidden, cos, sin = decoder.embed(prompt_ids, 0)
    for layer, row, picks in zip(decoder.layers, rows, rankings, strict=True):
        scale = layer.self_attn.scaling
        q, k, v = decoder.qkv(layer, hidden, cos, sin)
        attended, _ = attend(q, k, v, scale, causal=True)
        hidden = decoder.finish_layer(layer, hidden, attended)
        if budget is None or prompt_len <= budget - 1:
            kept = list(range(prompt_len))
        elif policy == "streaming":
            kept = streaming_keep(prompt_len, budget - 1, sinks)
        else:
            q_window = q[:, prompt_len - window :]
            kept = snapkv_keep(q_window, k, budget - 1, scale=scale, kernel=kernel, sinks=sinks)
            if forced_keep is not None:
                theirs = forced_keep[len(keep_agreement)]
                keep_agreement.append(len(set(kept) & set(theirs)) / len(kept))
                kept = theirs
        row.fill(k, v, kept)
        if picks is not None:
            for position in kept:
                picks.fill(k[:, position], v[:, position])
            if len(kept) < prompt_len:
                picks.queries = list(q[:, prompt_len - window :].transpose(0, 1).double())

    output_ids: list[int] = []
    margins: list[float] = []
    kv_lens: list[int] = []
    victims: list[list[int]] = []
    ring_next = sinks  # "streaming": the row index that the next full row gives up

    while True:
        top = torch.topk(decoder.logits(hidden), 2)
        output_ids.append(int(top.indices[0]))
        margins.append(float(top.values[0] - top.values[1]))
        step = len(output_ids) - 1
        token = output_ids[-1]
        if forced_ids is not None and step < len(forced_ids):
            token = int(forced_ids[step])
        if len(output_ids) >= max_new_tokens or token in eos:
            break

        # One decode step: feed `token`, whose position is prompt_len + step.
        position = prompt_len + step
        hidden, cos, sin = decoder.embed([token], position)
        for number, (layer, row) in enumerate(zip(decoder.layers, rows, strict=True)):
            q, k, v = decoder.qkv(layer, hidden, cos, sin)
            row.write(k, v, position)
            attended, alpha = attend(q, row.k, row.v, layer.self_attn.scaling, causal=False)
            hidden = decoder.finish_layer(layer, hidden, attended)
            if ranking:
                row.victim = rankings[number].step(q[:, 0], k[:, 0], v[:, 0])
                continue
            if budget is None or len(row) < budget:
                continue
            if policy == "streaming":
                row.victim = ring_next
            elif policy == "random":
                row.victim = random_victim(full_steps, row.positions, sinks, recent)
            else:
                scores = removal_scores(alpha[:, 0], row.v)
                if policy == "tova":
                    scores = alpha[:, 0].mean(dim=0)
                scores = scores.tolist()
                row.victim = choose_victim(scores, row.positions, sinks, recent)
                if forced_victims is not None and full_steps in forced_victims:
                    theirs = forced_victims[full_steps][number]
                    median = sorted(scores)[len(scores) // 2]
                    regrets.append((scores[theirs] - scores[row.victim]) / median)
                    row.victim = theirs
        full_steps += budget is not None and len(rows[0]) == budget
        if budget is not None and len(rows[0]) == budget:
            ring_next = ring_next + 1 if ring_next + 1 < budget else sinks
        lengths = {len(row) for row in rows}
        assert len(lengths) == 1, "layers disagree on the resident length"
        kv_lens.append(lengths.pop())
        victims.append([row.victim for row in rows])

    return OracleResult(
        output_ids,
        margins,
        kv_lens,
        None if budget is None else victims,
        regrets,
        keep_agreement,
    )
