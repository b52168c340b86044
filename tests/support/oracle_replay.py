# SPDX-License-Identifier: Apache-2.0
"""Follows a run of the oracle with Hugging Face's own numbers, one mask a layer."""

from __future__ import annotations

import pytest
import torch

REL = 1e-3  # scores closer than this count as a tie between two float32 computations


def naive_scores(alpha, v):
    heads, n = len(alpha), len(alpha[0])
    group = heads // len(v)
    dim = len(v[0][0])
    scores = []
    for i in range(n):
        total = 0.0
        for h in range(heads):
            for d in range(dim):
                total += abs(alpha[h][i] * v[h // group][i][d])
        scores.append(total / (heads * dim))
    return scores


def naive_pooled_votes(probs, kernel=5):
    """probs[h][w][i] over the earlier keys, normalised -> pooled votes."""
    n = len(probs[0][0])
    votes = [
        sum(probs[h][w][i] for h in range(len(probs)) for w in range(len(probs[0])))
        for i in range(n)
    ]
    half = kernel // 2
    return [sum(votes[max(0, i - half) : i + half + 1]) / kernel for i in range(n)]


class Replay:
    """Runs HF's eager forward over the whole sequence, the layer l that attends under masks[l].

    Nothing is ever dropped here: a token that was evicted is masked out for the later queries.
    """

    def __init__(self, model):
        self.model = model
        self.layers = [module for module in model.modules() if hasattr(module, "v_proj")]
        self.masks = None
        self.alpha = [None] * len(self.layers)
        self.v = [None] * len(self.layers)
        for i, attn in enumerate(self.layers):
            attn.register_forward_pre_hook(self._set_mask(i), with_kwargs=True)
            attn.register_forward_hook(self._get_alpha(i))
            attn.v_proj.register_forward_hook(self._get_v(i))

    def _set_mask(self, i):
        def hook(module, args, kwargs):
            assert "attention_mask" in kwargs
            kwargs["attention_mask"] = self.masks[i][None, None]
            return args, kwargs

        return hook

    def _get_alpha(self, i):
        def hook(module, args, output):
            assert output[1] is not None
            self.alpha[i] = output[1][0]

        return hook

    def _get_v(self, i):
        def hook(module, args, output):
            n, dim = output.shape[1], module.out_features // self.model.config.num_key_value_heads
            self.v[i] = output[0].view(n, -1, dim).transpose(0, 1)

        return hook

    def __call__(self, ids, visible):
        """ids: the whole sequence; visible[l][t]: positions that query t sees in layer l."""
        n = len(ids)
        self.masks = []
        for rows in visible:
            mask = torch.full((n, n), -1e30)
            for t, seen in enumerate(rows):
                mask[t, list(seen)] = 0.0
            self.masks.append(mask)
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0, -1]


def replay_budget(model, prompt, budget, result, *, sinks=0, recent=0, policy="longflow", cuts=()):
    """Follow `result` step by step with HF's numbers; fail where it breaks the rule.

    Choices of the oracle are compared by score, so that float noise between two near-equal slots
    does not fail the test. Returns the number of victims checked.
    """
    replay = Replay(model)
    n_layers, p = len(replay.layers), len(prompt)
    ids = list(prompt)
    visible = [[range(t + 1) for t in range(p)] for _ in range(n_layers)]
    logits = replay(ids, visible)
    rows = []
    for layer in range(n_layers):
        if p <= budget - 1:
            rows.append(list(range(p)))
        elif policy == "streaming":
            rows.append(list(range(sinks)) + list(range(p - (budget - 1 - sinks), p)))
        else:
            kept = cuts[layer]
            earlier = replay.alpha[layer][:, p - 32 :, : p - 32].double()
            earlier = earlier / earlier.sum(-1, keepdim=True)  # the softmax over these keys only
            pooled = naive_pooled_votes(earlier.tolist())
            assert len(kept) == budget - 1 and kept == sorted(set(kept))
            assert kept[-32:] == list(range(p - 32, p)) and kept[:sinks] == list(range(sinks))
            chosen = set(kept[sinks:-32])
            dropped = set(range(sinks, p - 32)) - chosen
            assert dropped
            assert min(pooled[i] for i in chosen) >= max(pooled[i] for i in dropped) * (1 - REL)
            rows.append(list(kept))

    checked, ring = 0, sinks
    pending = [-1] * n_layers
    for step, token in enumerate(result.output_ids):
        top = logits.topk(2)
        assert float(top.values[0] - top.values[1]) == pytest.approx(
            result.margins[step], rel=1e-2, abs=1e-3
        )
        assert token == int(top.indices[0]) or result.margins[step] < 1e-3
        if step == len(result.output_ids) - 1:
            break
        position = len(ids)
        ids.append(token)
        for layer, row in enumerate(rows):
            if len(row) < budget:
                row.append(position)
            else:
                row[pending[layer]] = position
            visible[layer].append(list(row))
        logits = replay(ids, visible)
        assert result.kv_lens[step] == len(rows[0]) <= budget
        pending = result.victims[step]
        for layer, row in enumerate(rows):
            if len(row) < budget:
                assert pending[layer] == -1
                continue
            checked += 1
            if policy == "streaming":
                assert pending[layer] == ring
                oldest = min(range(sinks, budget), key=lambda i: row[i])
                assert pending[layer] == oldest
                continue
            alpha = replay.alpha[layer][:, -1, row]
            newest = sorted(row)[budget - recent :]
            free = [i for i in range(sinks, budget) if row[i] not in newest]
            assert pending[layer] in free
            if policy == "random":
                assert pending[layer] == result.victims[step][0]  # one draw for all layers
                continue
            scores = naive_scores(alpha.tolist(), replay.v[layer][:, row].tolist())
            if policy == "tova":
                scores = [sum(shares) / len(shares) for shares in alpha.T.tolist()]
            assert scores[pending[layer]] <= min(scores[i] for i in free) * (1 + REL)
        if len(rows[0]) == budget:
            ring = sinks if ring + 1 == budget else ring + 1
    return checked
