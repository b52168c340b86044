# SPDX-License-Identifier: Apache-2.0
"""Every policy's victim, written token by token in float64; no code shared with the package.

A `ReferenceRow` is one layer's row of one request: tokens in the order they were written, each with
its row index, and the queries of the decode steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

#: Policies that remember; those of a line may share a server.
REMEMBERING = (
    ("vatp", "h2o", "h2o-last", "keydiff", "longflow-peak"),
    ("longflow-novel",),
    ("snapkv-decode",),
    ("rkv",),
    ("rpc",),
)
WEIGHT, SHARE, SPAN, ENOUGH = 16.0, 0.2, 0.1, 0.04  # of longflow-novel


@dataclass
class Token:
    place: int
    k: torch.Tensor  # [kv heads, head_dim] float64
    v: torch.Tensor
    mass: float = 0.0
    similarity: float = 0.0


@dataclass
class Recall:
    """Of one request, moved on by each of its layers in turn."""

    layers: int
    value: float = 0.0


@dataclass
class ReferenceRow:
    """Feed `step` with each decode step's q, k, v; it returns the row index that goes next."""

    policy: str
    budget: int
    queries: list[torch.Tensor] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    overwrites: int = -1  # -1: not full yet
    queue: list[int] = field(default_factory=list)
    victim: int = -1
    prompt: int = 0
    sinks: int = 0  # protected tokens; only the project's own policies are asked for any
    recent: int = 0
    level: float = 0.0  # what SHARE of the slots have as their peak
    shared: Recall = field(default_factory=lambda: Recall(layers=2))

    def fill(self, k, v) -> None:
        self.tokens.append(Token(len(self.tokens), k.double(), v.double()))
        self.prompt += 1

    def step(self, q, k, v) -> int:
        self.queries.append(q.double())
        token = Token(len(self.tokens), k.double(), v.double())
        if len(self.tokens) == self.budget:
            gone = next(t for t in self.tokens if t.place == self.victim)
            self.tokens.remove(gone)
            token.place = gone.place
        self.tokens.append(token)
        if len(self.tokens) < self.budget:
            return -1
        self.overwrites += 1
        self.victim = getattr(self, self.policy.replace("-", "_"))()
        return self.victim

    # pieces

    def weights(self, q, tokens) -> list[list[float]]:
        """[query head][token], softmax over `tokens`."""
        group = q.shape[0] // tokens[0].k.shape[0]
        rows = []
        for h in range(q.shape[0]):
            logits = [float(q[h] @ t.k[h // group]) / math.sqrt(q.shape[1]) for t in tokens]
            peak = max(logits)
            exps = [math.exp(x - peak) for x in logits]
            rows.append([e / sum(exps) for e in exps])
        return rows

    def mass(self) -> list[float]:
        weights = self.weights(self.queries[-1], self.tokens)
        return [sum(w[i] for w in weights) / len(weights) for i in range(len(self.tokens))]

    def removal(self) -> list[float]:
        """LongFlow's score of every token, for the last query."""
        weights = self.weights(self.queries[-1], self.tokens)
        group = len(weights) // self.tokens[0].k.shape[0]
        size = self.tokens[0].v.shape[1]
        return [
            sum(w[i] * float(t.v[h // group].abs().sum()) for h, w in enumerate(weights))
            / (len(weights) * size)
            for i, t in enumerate(self.tokens)
        ]

    def longflow_peak(self) -> int:
        now = self.removal()
        peaks = [max(0.95 * t.mass, x) for t, x in zip(self.tokens, now, strict=True)]
        if self.overwrites:  # history begins with the first overwrite
            for token, peak in zip(self.tokens, peaks, strict=True):
                token.mass = peak
        free = [
            (peak, token.place)
            for token, peak in list(zip(self.tokens, peaks, strict=True))[
                : self.budget - self.recent
            ]
            if token.place >= self.sinks
        ]
        return min(free)[1]

    def longflow_novel(self) -> int:
        def similarity(a, b):
            size = a.k.shape[1]
            slow = [i for i in range(size) if i % (size // 2) >= size * 3 // 8]
            x, y = a.k[:, slow].flatten(), b.k[:, slow].flatten()
            return float(x @ y / (x.norm() * y.norm()))

        if self.overwrites == 1:  # history begins with the first overwrite
            newest = self.tokens
        else:
            newest = self.tokens[-16:] if self.overwrites and self.overwrites % 16 == 0 else []
        peaks, scores = [0.95 * t.mass for t in self.tokens], []
        removal = self.removal()
        late = self.budget - (self.recent or 16)
        free = [i for i in range(late) if self.tokens[i].place > 3]
        if self.overwrites == 0:
            self.shared.value = 2 * ENOUGH
        worth = WEIGHT * self.level * min(1.0, self.shared.value / ENOUGH) ** 8
        if self.overwrites > 1:
            part = sum(removal[i] for i in free if peaks[i] < self.level) / sum(removal)
            self.shared.value += 0.02 / self.shared.layers * (part - self.shared.value)
        if self.overwrites:
            below = sum(max(*x) < self.level for x in zip(peaks, removal, strict=True))
            self.level *= 1 + 0.1 * (SHARE - below / self.budget)
        else:
            self.level = SHARE * sum(removal) / self.budget
        for i, (token, now) in enumerate(zip(self.tokens, removal, strict=True)):
            newer = newest[max(0, len(newest) - (self.budget - 1 - i)) :]
            token.similarity = max([token.similarity, *(similarity(token, n) for n in newer)])
            peak = max(peaks[i], now)
            token.mass = peak if self.overwrites else 0.0
            scores.append(peak + worth * min(1.0, (1 - token.similarity) / SPAN))
        return self.lowest(scores, free)

    def accumulated(self) -> list[float]:
        for token, now in zip(self.tokens, self.mass(), strict=True):
            token.mass += now
        total = [t.mass for t in self.tokens]
        if self.overwrites == 0:  # history begins with the first overwrite
            for token in self.tokens:
                token.mass = 0.0
        return total

    def lowest(self, scores, among) -> int:
        """The row index of the lowest score among positions in the sequence."""
        best = min(among, key=lambda i: (scores[i], self.tokens[i].place))
        return self.tokens[best].place

    def queued(self, interval, rank) -> int:
        interval = max(1, min(interval, self.budget // 8))
        if self.overwrites % interval == 0:
            scores, among = rank()
            order = sorted(among, key=lambda i: (scores[i], self.tokens[i].place))
            self.queue = [self.tokens[i].place for i in order[:interval]]
        return self.queue.pop(0)

    @staticmethod
    def pooled(values, kernel, how):
        half, out = kernel // 2, []
        for i in range(len(values)):
            near = [values[j] for j in range(i - half, i + half + 1) if 0 <= j < len(values)]
            out.append(max(near) if how == "max" else sum(near) / kernel)
        return out

    # policies

    def h2o(self) -> int:
        return self.lowest(self.accumulated(), range(self.budget - self.budget // 2))

    def h2o_last(self) -> int:
        return self.lowest(self.mass(), range(self.budget - self.budget // 2))

    def vatp(self) -> int:
        sizes = [sum(float(x.abs().sum()) for x in t.v) / len(t.v) for t in self.tokens]
        scores = [m * s for m, s in zip(self.accumulated(), sizes, strict=True)]
        among = [i for i in range(self.budget - self.budget // 2) if self.tokens[i].place >= 20]
        return self.lowest(scores, among)

    def snapkv_decode(self) -> int:
        def rank():
            earlier = self.tokens[: self.budget - 16]
            votes = [0.0] * len(earlier)
            for q in self.queries[-16:]:
                for row in self.weights(q, earlier):
                    votes = [a + b for a, b in zip(votes, row, strict=True)]
            return self.pooled(votes, 5, "mean"), range(len(earlier))

        return self.queued(128, rank)

    def rpc(self) -> int:
        def rank():
            late = self.budget - 32
            first = self.prompt if late - self.prompt >= self.budget // 4 else 0
            earlier = self.tokens[first:late]
            votes = [0.0] * len(earlier)
            for q in self.queries[-32:]:
                for row in self.weights(q, earlier):
                    votes = [a + b for a, b in zip(votes, row, strict=True)]
            scores = self.pooled([0.0] * first + votes, 7, "mean")
            return scores, range(first, late)

        return self.queued(1024, rank)

    def rkv(self) -> int:
        def rank():
            count, late = self.budget, self.budget - 8
            kv_heads = self.tokens[0].k.shape[0]
            total = [0.0] * late
            for h in range(kv_heads):
                importance = [0.0] * late
                for q in self.queries[-8:]:
                    group = q.shape[0] // kv_heads
                    logits = [
                        max(float(q[h * group + g] @ t.k[h]) for g in range(group))
                        / math.sqrt(q.shape[1])
                        for t in self.tokens[:late]
                    ]
                    peak = max(logits)
                    exps = [math.exp(x - peak) for x in logits]
                    importance = [a + e / sum(exps) for a, e in zip(importance, exps, strict=True)]
                importance = [x / len(self.queries[-8:]) for x in importance]
                importance = self.pooled(importance, 7, "max")
                column = [0.0] * count
                for i in range(count):
                    a = self.tokens[i].k[h]
                    near = [
                        0.0 if i == j else float(a @ t.k[h] / (a.norm() * t.k[h].norm()))
                        for j, t in enumerate(self.tokens)
                    ]
                    similar = [j for j in range(count) if near[j] > 0.5]
                    if similar:
                        near[similar[-1]] = 0.0
                    column = [c + x / count for c, x in zip(column, near, strict=True)]
                exps = [math.exp(x) for x in column]
                for i in range(late):
                    total[i] += 0.1 * importance[i] - 0.9 * exps[i] / sum(exps)
            return total, range(late)

        return self.queued(128, rank)

    def keydiff(self) -> int:
        scores = [0.0] * self.budget
        for h in range(self.tokens[0].k.shape[0]):
            unit = [t.k[h] / t.k[h].norm() for t in self.tokens]
            anchor = sum(unit) / len(unit)
            for i, u in enumerate(unit):
                scores[i] -= float(u @ anchor / anchor.norm())
        return self.lowest(scores, range(self.budget))


def rankings_of(policy: str, budget: int, layers: int) -> Callable[[], ReferenceRow]:
    """Makes one `ReferenceRow` after the other, for the layers of one request."""
    shared = Recall(layers)
    return lambda: ReferenceRow(policy, budget, shared=shared)
