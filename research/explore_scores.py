# SPDX-License-Identifier: Apache-2.0
"""What a rule of eviction costs, in seconds: to try scores, not to report them.

Tokens are fed to a Llama-like or Qwen3 model layer by layer: within a layer every query is known
before eviction begins, so only attention is walked token by token. Rules whose layers share
something (`recalled`) go through all layers token by token. Everything after the first
`--budget` tokens attends to that many slots. No server, no prompt cut, float32; what
`longflow eval` measures through a server is what counts (docs/accuracy.md).

Of real text the KL divergence from full KV is printed; of the reasoner's problems the share whose
every token is the model's first choice, which greedy decoding would solve.

    python research/explore_scores.py --model FOLDER --texts math.jsonl --budget 160 \
      --rules 'removal;removal,decay=0.9,memory=peak;attention;stream,sinks=4' --out tried.csv
    python research/explore_scores.py --model REASONER --problems 60 --tokens 1700 --budget 340 \
      --rules removal
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from train_reasoner import IGNORED, pad_batch, wrong_tokens
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from longflow_kernels.novelty.reference import slow_channels
from sglang_longflow.measure.divergence.forced import kl_of
from sglang_longflow.measure.divergence.texts import TextTask, load_texts
from sglang_longflow.reasoner import KINDS, make_problem


@dataclass(frozen=True)
class Rule:
    """How slots are ranked; the lowest goes.

    Attributes
    ----------
    score : str
        removal (LongFlow's), attention, exact (removal's exact error: a / (1 - a) |v - o|), squared
        (of each head's contribution), loudest (head instead of the mean), stream (oldest), random.
    decay : float
        Factor on a slot's memory per step; 0: no memory, this query alone.
    memory : str
        sum, mean (unbiased by age), or peak of the decayed scores.
    sinks, recent : int
        Protected tokens.
    heads : int
        1: every KV head has its own victim.
    twin : str
        Scores are multiplied by ``(1 - s) ** power``, s the highest cosine similarity of a token to
        one that was written after it: of values ("v"), of keys ("k"), of the quarter of the keys'
        channels that RoPE turns least ("l", of all KV heads together, as `longflow-novel` has it);
        of several, the lowest ("lv").
    power : float
    centred : int
        1: cosine similarities are of what differs from the mean of the tokens that fill the row.
    above : float
        Cosine similarities count from here on: this is 0, 1 stays 1.
    floor : float
        Other than 0: instead of multiplying the score, novelty adds ``floor`` times the row's mean
        score of this step times ``(1 - s) ** power``; it decides among slots not read lately.
    share : float
        Other than 0: ``floor`` is in levels instead of means, the level being this quantile of the
        row's remembered scores.
    pace : float
        Other than 0: the level is a running estimate: each step it changes by this fraction of
        itself times (``share`` - share of slots below it).
    recalled : float
        Other than 0: novelty counts in full once this share of the row's scores goes to slots whose
        memory was below the level (recent ones aside). Below it, novelty is multiplied by the
        `gate`-th power of recall / ``recalled``. All layers of a row share the recall.
    gate : float
    slow : float
        Weight of one step in the recall, which begins at `begin` times ``recalled``.
    begin : float
    tilt : float
        Budgets differ by layer, with the same total: ``1 + tilt`` times the budget in the first,
        ``1 - tilt`` times in the last, linear between.
    every : int
        Steps between two rankings; each names this many victims.
    apart : int
        1: the n-th victim is the lowest among places with index % `every` == n, instead of the n-th
        lowest of all.
    """

    score: str
    decay: float = 0.0
    memory: str = "sum"
    sinks: int = 0
    recent: int = 0
    heads: int = 0
    twin: str = ""
    power: float = 1.0
    centred: int = 0
    above: float = 0.0
    floor: float = 0.0
    share: float = 0.0
    pace: float = 0.0
    recalled: float = 0.0
    gate: float = 2.0
    slow: float = 0.02
    begin: float = 1.0
    tilt: float = 0.0
    every: int = 1
    apart: int = 0


def parse_rule(text: str) -> Rule:
    score, *options = text.split(",")
    types = {field.name: type(field.default) for field in fields(Rule) if field.name != "score"}
    pairs = (option.split("=") for option in options)
    return Rule(score, **{name: types[name](value) for name, value in pairs})


def _compared(name: str, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Channels of k or v [batch, kv_heads, tokens, size] that `Rule.twin` compares. k is rotated
    in halves."""
    if name == "v":
        return v
    return slow_channels(k) if name == "l" else k


def _direction(name: str, part: torch.Tensor) -> torch.Tensor:
    """Scaled so that the mean of products over heads is a cosine, or the mean of the heads'."""
    if name == "l":
        length = part.square().mean(dim=1, keepdim=True).sum(dim=-1, keepdim=True).sqrt()
        return part / length.clamp_min(1e-12)
    return F.normalize(part, dim=-1)


def _lowest(similarities) -> torch.Tensor:
    """Of several kinds, each [batch, kv_heads, ...]: the heads' mean, the lowest of them."""
    return torch.stack([found.mean(dim=1) for found in similarities]).amin(dim=0)


@dataclass
class Recall:
    """What part of each row's scores goes to slots below its level; of all layers."""

    value: torch.Tensor  # [batch, 1, 1]
    pace: float  # what a layer of a step counts


class Rows:
    """One layer's rows of all texts, at their budget."""

    def __init__(
        self,
        rule: Rule,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: int,
        recall: Recall | None = None,
    ):
        batch, kv_heads, budget, _ = k.shape
        self.rule, self.k, self.v = rule, k.clone(), v.clone()
        self.budget, self.kv_heads = budget, kv_heads
        self.victim_heads = kv_heads if rule.heads else 1
        self.born = torch.arange(budget).expand(batch, self.victim_heads, -1).clone()
        self.memory = torch.zeros(batch, self.victim_heads, budget)
        self.level: torch.Tensor | None = None
        self.recall = recall
        self.norms = self.v.abs().mean(dim=-1)
        self.parts, self.centres = {}, {}
        for name in rule.twin:
            part = _compared(name, self.k, self.v)
            self.centres[name] = part.mean(dim=2, keepdim=True) * rule.centred
            self.parts[name] = _direction(name, part - self.centres[name])
        if rule.twin:
            alike = _lowest(part @ part.transpose(2, 3) for part in self.parts.values())
            older = torch.ones(budget, budget).triu(1).bool()  # [token, one written after it]
            self.twin = alike.masked_fill(~older, -1.0).amax(dim=-1)
        self.generator = torch.Generator().manual_seed(layer)

    def write(self, place: torch.Tensor, k: torch.Tensor, v: torch.Tensor, step: int) -> None:
        """Overwrite `place` [batch, victim_heads] with k, v [batch, kv_heads, size]."""
        index = place.expand(-1, self.kv_heads)[:, :, None, None]
        self.k.scatter_(2, index.expand(-1, -1, 1, k.shape[2]), k[:, :, None])
        self.v.scatter_(2, index.expand(-1, -1, 1, v.shape[2]), v[:, :, None])
        self.norms.scatter_(
            2, place.expand(-1, self.kv_heads)[:, :, None], v.abs().mean(-1)[..., None]
        )
        self.born.scatter_(2, place[:, :, None], step)
        self.memory.scatter_(2, place[:, :, None], 0.0)
        if self.rule.twin:
            self._compare(place[:, 0], k, v)

    def _compare(self, place: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Record the similarity of all tokens to the one written to `place` [batch]."""
        found = []
        for name, part in self.parts.items():
            new = _compared(name, k[:, :, None], v[:, :, None]) - self.centres[name]
            new = _direction(name, new)
            found.append((part @ new.transpose(2, 3))[..., 0])
            index = place[:, None, None, None].expand(new.shape)
            part.scatter_(2, index, new)
        self.twin = torch.maximum(self.twin, _lowest(found))
        self.twin.scatter_(1, place[:, None], -1.0)

    def attend(self, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights [batch, kv_heads, group, budget] and outputs of q [batch, heads, size]."""
        grouped = q.view(q.shape[0], self.kv_heads, -1, q.shape[-1])
        logits = grouped @ self.k.transpose(2, 3) / math.sqrt(q.shape[-1])
        weights = torch.softmax(logits, dim=-1)
        return weights, weights @ self.v

    def victims(self, weights: torch.Tensor, out: torch.Tensor, step: int) -> torch.Tensor:
        """[batch, victim_heads]: what is overwritten next."""
        phase = (step - self.budget + 1) % self.rule.every
        if phase == 0:
            scores = self._ranked_by(weights, out, step)
            if self.rule.apart:
                place = torch.arange(self.budget) % self.rule.every
                found = [
                    scores.masked_fill(place != n, torch.inf).argmin(dim=-1)
                    for n in range(self.rule.every)
                ]
                self.queue = torch.stack(found, dim=-1)
            else:
                self.queue = scores.topk(self.rule.every, largest=False, sorted=True).indices
        return self.queue[..., phase]

    def _ranked_by(self, weights: torch.Tensor, out: torch.Tensor, step: int) -> torch.Tensor:
        rule = self.rule
        scores = self._scores(weights, out)
        mean = scores.mean(dim=-1, keepdim=True)
        worth = self._worth(scores, mean, step) if self.recall else 1.0
        if rule.decay:
            scores = self._remember(scores, step)
        if rule.share:
            mean = self._level(scores, mean)
        if rule.twin:
            like = (self.twin[:, None] - rule.above).clamp_min(0.0) / (1 - rule.above)
            unlike = (1 - like).clamp_min(1e-6) ** rule.power
            scores = scores + rule.floor * worth * mean * unlike if rule.floor else scores * unlike
        scores = scores.masked_fill(self.born < rule.sinks, torch.inf)
        return scores.masked_fill(self.born > step - rule.recent, torch.inf)

    def _worth(self, scores: torch.Tensor, mean: torch.Tensor, step: int) -> torch.Tensor:
        """[batch, 1, 1]: the weight of novelty, after this layer's part in the recall."""
        assert self.recall is not None
        rule, recall = self.rule, self.recall
        level = mean * rule.share if self.level is None else self.level
        cold = (self.memory * rule.decay < level) & (self.born <= step - rule.recent)
        part = (scores * cold).sum(dim=-1, keepdim=True) / scores.sum(dim=-1, keepdim=True)
        recall.value = recall.value + recall.pace * (part - recall.value)
        return (recall.value / rule.recalled).clamp(0, 1) ** rule.gate

    def _level(self, scores: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        if not self.rule.pace:
            return scores.quantile(self.rule.share, dim=-1, keepdim=True)
        level = mean * self.rule.share if self.level is None else self.level
        below = (scores < level).float().mean(dim=-1, keepdim=True)
        self.level = level * (1 + self.rule.pace * (self.rule.share - below))
        return level

    def _scores(self, weights: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        score, heads = self.rule.score, weights.shape[1] * weights.shape[2]
        if score == "stream":
            return self.born.float()
        if score == "random":
            return torch.rand(self.born.shape, generator=self.generator)
        if score == "even":
            return torch.ones(self.born.shape)
        if score == "keydiff":
            unit = F.normalize(self.k, dim=-1)
            alike = (unit * F.normalize(unit.mean(dim=2, keepdim=True), dim=-1)).sum(dim=-1)
            return (1 - alike).mean(dim=1, keepdim=True)
        if score == "attention":
            found = weights.sum(dim=2)
        elif score == "removal":
            found = weights.sum(dim=2) * self.norms
        elif score == "exact":
            away = (self.v[:, :, None] - out[:, :, :, None]).abs().mean(dim=-1)
            found = (weights / (1 - weights).clamp_min(1e-4) * away).sum(dim=2)
        elif score == "squared":
            found = weights.square().sum(dim=2) * self.norms.square()
        elif score == "loudest":
            found = weights.amax(dim=2) * self.norms
        else:
            raise SystemExit(f"--rules: unknown score {score!r}")
        if self.rule.heads:
            return found / heads
        return found.amax(1, keepdim=True) if score == "loudest" else found.sum(1, keepdim=True)

    def _remember(self, scores: torch.Tensor, step: int) -> torch.Tensor:
        decay, memory = self.rule.decay**self.rule.every, self.rule.memory
        if memory == "peak":
            self.memory = torch.maximum(self.memory * decay, scores)
            return self.memory
        self.memory = self.memory * decay + scores
        if memory == "mean":
            age = step - self.born.clamp_min(self.budget - 1) + 1
            return self.memory / (1 - decay**age)
        return self.memory


def evicting_attention(q, k, v, budget: int, rule: Rule, layer: int) -> torch.Tensor:
    """Attention of [batch, heads, tokens, size] in which rows end at `budget` slots."""
    out = full_attention(q, k, v)
    rows = Rows(rule, k[:, :, :budget], v[:, :, :budget], layer)
    place = rows.victims(*rows.attend(q[:, :, budget - 1]), budget - 1)
    for step in range(budget, q.shape[2]):
        rows.write(place, k[:, :, step], v[:, :, step], step)
        weights, found = rows.attend(q[:, :, step])
        out[:, :, step] = found.flatten(1, 2)
        place = rows.victims(weights, found, step)
    return out


def full_attention(q, k, v) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def logits_of(model, ids: torch.Tensor, budget: int = 0, rule: Rule | None = None) -> torch.Tensor:
    """[batch, tokens, vocabulary]; full KV without a rule."""
    hidden = model.model.embed_tokens(ids)
    turned = model.model.rotary_emb(hidden, torch.arange(ids.shape[1]).expand(ids.shape))
    layers = model.model.layers
    if rule and rule.recalled:
        hidden = _step_by_step(layers, hidden, turned, budget, rule)
    else:
        for number, layer in enumerate(layers):
            q, k, v = _qkv(layer, hidden, *turned)
            if rule:
                slots = round(budget * (1 + rule.tilt * (1 - 2 * number / (len(layers) - 1))))
                found = evicting_attention(q, k, v, slots, rule, number)
            else:
                found = full_attention(q, k, v)
            hidden = _after_attention(layer, hidden, found)
    return model.lm_head(model.model.norm(hidden))


def _qkv(layer, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor):
    """q, k, v [batch, heads, tokens, size] of a layer, after RoPE."""
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    shape = (*hidden.shape[:2], -1, attention.head_dim)
    q, k, v = (
        project(normed).view(shape)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if hasattr(attention, "q_norm"):
        q, k = attention.q_norm(q), attention.k_norm(k)
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return *apply_rotary_pos_emb(q, k, cos, sin), v


def _after_attention(layer, hidden: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    hidden = hidden + layer.self_attn.o_proj(found.transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def _step_by_step(layers, hidden: torch.Tensor, turned, budget: int, rule: Rule) -> torch.Tensor:
    """`hidden` after all layers; one recall goes through the layers of a step."""
    start = torch.full((len(hidden), 1, 1), rule.begin * rule.recalled)
    recall = Recall(start, rule.slow / len(layers))
    begin, rows, places = hidden[:, :budget], [], []
    cos, sin = turned
    for number, layer in enumerate(layers):
        q, k, v = _qkv(layer, begin, cos[:, :budget], sin[:, :budget])
        rows.append(Rows(rule, k, v, number, recall))
        places.append(rows[-1].victims(*rows[-1].attend(q[:, :, -1]), budget - 1))
        begin = _after_attention(layer, begin, full_attention(q, k, v))
    done = [begin]
    for step in range(budget, hidden.shape[1]):
        now = slice(step, step + 1)
        token = hidden[:, now]
        for number, layer in enumerate(layers):
            q, k, v = _qkv(layer, token, cos[:, now], sin[:, now])
            rows[number].write(places[number], k[:, :, 0], v[:, :, 0], step)
            weights, found = rows[number].attend(q[:, :, 0])
            places[number] = rows[number].victims(weights, found, step)
            token = _after_attention(layer, token, found.flatten(1, 2)[:, :, None])
        done.append(token)
    return torch.cat(done, dim=1)


class Texts:
    """Real text: how far the next token's distribution is from full KV's."""

    def __init__(self, model, args: argparse.Namespace):
        self.model, self.budget = model, args.budget
        task = TextTask(args.texts, args.tokens, args.budget, args.count, args.seed)
        self.ids = torch.tensor(load_texts(task, args.model))
        self.full = torch.log_softmax(logits_of(model, self.ids)[:, self.budget :], dim=-1)

    def measure(self, rule: Rule) -> dict[str, float]:
        logits = logits_of(self.model, self.ids, self.budget, rule)[:, self.budget :]
        same = (self.full.argmax(dim=-1) == logits.argmax(dim=-1)).float().mean().item()
        return dict(kl=round(kl_of(self.full, logits).mean().item(), 4), top1=round(same, 4))


class Problems:
    """The reasoner's problems, of similar length side by side."""

    def __init__(self, model, args: argparse.Namespace, batch: int = 30):
        self.model, self.budget = model, args.budget
        rng = random.Random(f"explore/{args.seed}")
        kinds = [args.kinds[i % len(args.kinds)] for i in range(args.problems)]
        drawn = [make_problem(kind, rng, args.tokens) for kind in kinds]
        drawn.sort(key=lambda problem: problem.chain_tokens)
        self.parts = [drawn[i : i + batch] for i in range(0, len(drawn), batch)]

    def measure(self, rule: Rule | None) -> dict[str, float]:
        """Share solved, of all and of each kind, and tokens in a million that are not first."""
        wrong: dict[str, list[int]] = {}
        tokens = 0
        for part in self.parts:
            ids, labels = pad_batch(part)
            choice = logits_of(self.model, ids, self.budget, rule).argmax(dim=-1)[:, :-1]
            tokens += int((labels[:, 1:] != IGNORED).sum())
            for problem, count in zip(part, wrong_tokens(choice, labels), strict=True):
                wrong.setdefault(problem.kind, []).append(count)
        every = [count for found in wrong.values() for count in found]
        return {
            **{
                kind: round(sum(count == 0 for count in found) / len(found), 4)
                for kind, found in {"solved": every, **wrong}.items()
            },
            "wrong": round(1e6 * sum(every) / tokens, 1),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of a Llama-like model")
    add("--texts", type=Path, help="JSON lines, as for longflow eval --task text:")
    add("--problems", type=int, help="so many of the reasoner's problems, in place of texts")
    add("--kinds", type=lambda text: text.split(","), default=list(KINDS), help="of problems")
    add("--count", type=int, default=3)
    add("--tokens", type=int, default=900, help="of a text, or of a problem's chain, about")
    add("--budget", type=int, default=160)
    add("--seed", type=int, default=1, help="of the problems, or of the order of the texts'")
    add("--rules", type=lambda text: text.split(";"), required=True, help="with semicolons")
    add("--out", type=Path, help="CSV file")
    args = parser.parse_args()
    if bool(args.texts) == bool(args.problems):
        parser.error("--texts or --problems: one of them")
    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    lines = []
    if args.problems:
        data = Problems(model, args)
        print("full KV", data.measure(None), flush=True)
    else:
        data = Texts(model, args)
    for text in args.rules:
        began = time.monotonic()
        lines.append(dict(rule=text, budget=args.budget, **data.measure(parse_rule(text))))
        print(lines[-1], f"{time.monotonic() - began:.0f} s", flush=True)
    if args.out:
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
