# SPDX-License-Identifier: Apache-2.0
"""Greedy decoding with a KV budget of any model that Transformers runs, in plain PyTorch.

Hugging Face's model runs as it is, with a cache of its own: recurrent layers, experts, an encoder
of images. Only what attends is ours: the function that every layer with keys and values calls,
which keeps `budget` tokens of each. It knows no model, so it also follows the dense ones of
`longflow_oracle`, of which it takes the rule and nothing else. No code is shared with the package
under test.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, DynamicCache, PreTrainedModel

import longflow_oracle
from longflow_oracle import OracleResult, Ranking, Row

_NAME = "kv_budget_oracle"


@dataclass(frozen=True)
class HybridResult(OracleResult):
    """What one greedy run produced; `victims` and `keep` have an entry per full-attention layer.

    keep: the prompt positions that each full-attention layer kept, ascending; empty where nothing
        was cut.
    states: the recurrent layers' state at the end by the layer's index: convolution state, and
        the recurrent one where the layer has one.
    """

    keep: list[list[int]] = field(default_factory=list)
    states: dict[int, list[torch.Tensor]] = field(default_factory=dict)


@dataclass
class _Layer:
    """One layer with keys and values: its row, and who picks its victims."""

    row: Row
    ranking: Ranking | None
    kept: list[int] = field(default_factory=list)


@dataclass
class _Run:
    """The rule and the rows of one request; `attend` is Hugging Face's attention function."""

    prompt_len: int
    budget: int | None
    capacity: int
    sinks: int
    recent: int
    policy: str
    window: int
    kernel: int
    make_ranking: Callable[[], Ranking] | None
    forced_victims: dict[int, list[int]] | None
    forced_keep: list[list[int]] | None
    position: int = 0
    full_steps: int = 0
    layers: dict[int, _Layer] = field(default_factory=dict)
    regrets: list[float] = field(default_factory=list)
    keep_agreement: list[float] = field(default_factory=list)

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **more: Any,
    ) -> tuple[torch.Tensor, None]:
        """query [1, heads, t, head_dim]; key and value [1, KV heads, all tokens, head_dim].

        Returns [1, t, heads, head_dim].
        """
        assert attention_mask is None and not dropout, "one sequence, without padding"
        for name in ("sliding_window", "softcap", "s_aux"):
            assert more.get(name) is None, f"{name} is not of this oracle"
        index = int(module.layer_idx)
        scale = module.head_dim**-0.5 if scaling is None else scaling
        q, k, v = query[0], key[0], value[0]
        prefill = index not in self.layers
        out = (self._prefill if prefill else self._decode)(index, q, k, v, scale)
        return out.view(1, q.shape[1], q.shape[0], v.shape[-1]), None

    def _prefill(
        self, index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Causal attention over the whole prompt, then the cut."""
        assert q.shape[1] == k.shape[1] == self.prompt_len
        out, _ = longflow_oracle.attend(q, k, v, scale, causal=True)
        cut = self.budget is not None and self.prompt_len > self.budget - 1
        kept = list(range(self.prompt_len))
        if cut and self.policy == "streaming":
            kept = longflow_oracle.streaming_keep(self.prompt_len, self.budget - 1, self.sinks)
        elif cut:
            kept = longflow_oracle.snapkv_keep(
                q[:, self.prompt_len - self.window :], k, self.budget - 1,
                scale=scale, kernel=self.kernel, sinks=self.sinks,
            )  # fmt: skip
            if self.forced_keep is not None:
                theirs = self.forced_keep[len(self.keep_agreement)]
                self.keep_agreement.append(len(set(kept) & set(theirs)) / len(kept))
                kept = list(theirs)
        layer = _Layer(Row(self.capacity), self.make_ranking() if self.make_ranking else None)
        layer.row.fill(k, v, kept)
        layer.kept = kept if cut else []
        if layer.ranking is not None:
            for position in kept:
                layer.ranking.fill(k[:, position], v[:, position])
            if cut:
                earlier = q[:, self.prompt_len - self.window :].transpose(0, 1)
                layer.ranking.queries = list(earlier.double())
        self.layers[index] = layer
        return out

    def _decode(
        self, index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """One token: it is stored, it attends to the row, and the row picks its next victim."""
        assert q.shape[1] == 1
        layer = self.layers[index]
        row = layer.row
        row.write(k[:, -1:], v[:, -1:], self.position)
        out, alpha = longflow_oracle.attend(q, row.k, row.v, scale, causal=False)
        if layer.ranking is not None:
            row.victim = layer.ranking.step(q[:, 0], k[:, -1], v[:, -1])
        elif self.budget is not None and len(row) == self.budget:
            row.victim = self._victim(index, row, alpha[:, 0])
        return out

    def _victim(self, index: int, row: Row, alpha: torch.Tensor) -> int:
        """The row index that a full row gives up next; alpha [heads, budget]."""
        assert self.budget is not None
        if self.policy == "streaming":
            return self.sinks + self.full_steps % (self.budget - self.sinks)
        if self.policy == "random":
            return longflow_oracle.random_victim(
                self.full_steps, row.positions, self.sinks, self.recent
            )
        scores = (
            alpha.mean(dim=0)
            if self.policy == "tova"
            else longflow_oracle.removal_scores(alpha, row.v)
        ).tolist()
        ours = longflow_oracle.choose_victim(scores, row.positions, self.sinks, self.recent)
        if self.forced_victims is None or self.full_steps not in self.forced_victims:
            return ours
        theirs = self.forced_victims[self.full_steps][list(self.layers).index(index)]
        median = sorted(scores)[len(scores) // 2]
        self.regrets.append((scores[theirs] - scores[ours]) / median)
        return theirs

    def length(self) -> int:
        """Resident tokens, the same in every layer."""
        lengths = {len(layer.row) for layer in self.layers.values()}
        assert len(lengths) == 1, "layers disagree on the resident length"
        return lengths.pop()


@contextlib.contextmanager
def _attending(model: PreTrainedModel, run: _Run) -> Iterator[None]:
    """The model's layers attend by `run` for the length of a block."""
    text = getattr(model.model, "language_model", model)  # an encoder attends by itself
    before = text.config._attn_implementation
    AttentionInterface.register(_NAME, run.attend)
    text.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        text.set_attn_implementation(before)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompt_ids: Sequence[int],
    budget: int | None,
    max_new_tokens: int,
    *,
    protect_sink_tokens: int = 0,
    protect_recent_tokens: int = 0,
    policy: str = "longflow",
    window: int = 32,
    kernel: int = 5,
    forced_ids: list[int] | None = None,
    forced_victims: dict[int, list[int]] | None = None,
    forced_keep: list[list[int]] | None = None,
    ranking: Callable[[], Ranking] | None = None,
    media: Mapping[str, torch.Tensor] | None = None,
) -> HybridResult:
    """Greedy decoding of one sequence; the arguments are those of `longflow_oracle.generate`.

    `media` is what the processor of a model of images gave beside the prompt's tokens. The model
    then works out the positions by itself: an image moves them.

    A `layer` of `forced_victims` and `forced_keep` is the layer's place among those with keys and
    values, in the model's order.
    """
    prompt = [int(i) for i in prompt_ids]
    longflow_oracle.validate(
        len(prompt), budget, max_new_tokens, protect_sink_tokens, protect_recent_tokens,
        policy, window, kernel, forced_ids,
    )  # fmt: skip
    run = _Run(
        len(prompt), budget, len(prompt) + max_new_tokens if budget is None else budget,
        protect_sink_tokens, protect_recent_tokens, policy, window, kernel, ranking,
        forced_victims, forced_keep,
    )  # fmt: skip
    cache = DynamicCache(config=model.config)
    device = model.get_input_embeddings().weight.device
    output_ids: list[int] = []
    margins: list[float] = []
    kv_lens: list[int] = []
    victims: list[list[int]] = []
    with _attending(model, run):
        fed = prompt
        while True:
            first = len(prompt) + len(output_ids) - 1 if output_ids else 0
            run.position = first
            more = {} if output_ids or media is None else dict(media)
            if media is None:
                more["position_ids"] = torch.arange(first, first + len(fed), device=device)[None]
            logits = model(
                torch.tensor([fed], device=device),
                past_key_values=cache,
                use_cache=True,
                **more,
            ).logits[0, -1]
            if output_ids:
                run.full_steps += budget is not None and run.length() == budget
                kv_lens.append(run.length())
                victims.append([layer.row.victim for layer in run.layers.values()])
            top = torch.topk(logits.float(), 2)
            output_ids.append(int(top.indices[0]))
            margins.append(float(top.values[0] - top.values[1]))
            if len(output_ids) == max_new_tokens:
                break
            step = len(output_ids) - 1
            fed = [output_ids[-1] if forced_ids is None else int(forced_ids[step])]
    return HybridResult(
        output_ids, margins, kv_lens, None if budget is None else victims,
        run.regrets, run.keep_agreement,
        keep=[layer.kept for layer in run.layers.values()],
        states=_states(cache),
    )  # fmt: skip


def _states(cache: DynamicCache) -> dict[int, list[torch.Tensor]]:
    """The recurrent layers' states, copied."""
    found = {}
    for index, layer in enumerate(cache.layers):
        kinds = (getattr(layer, "conv_states", {}), getattr(layer, "recurrent_states", {}))
        tensors = [one.clone() for kind in kinds for one in kind.values() if one is not None]
        if tensors:
            found[index] = tensors
    return found
