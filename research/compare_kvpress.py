#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Scores of kvpress's presses, which tests/policies/test_kvpress.py compares our policies with.

    python3 -m venv kvp && kvp/bin/pip install kvpress==0.5.5
    kvp/bin/python research/compare_kvpress.py > tests/policies/kvpress_scores.json

kvpress (Apache-2.0) is NVIDIA's collection of KV-cache compression methods. It is asked for the
scores of one row's tensors as after prefill: the tokens in sequence order, of which the last has
just been written. The tensors come from Python's own random numbers, which are the same everywhere.
"""

from __future__ import annotations

import json
import random
import sys
from types import SimpleNamespace

import torch

CASES = (
    dict(seed=1, tokens=72, q_heads=4, kv_heads=2, head_dim=16),
    dict(seed=2, tokens=96, q_heads=6, kv_heads=1, head_dim=16),
    dict(seed=3, tokens=64, q_heads=4, kv_heads=4, head_dim=32),
    dict(seed=4, tokens=150, q_heads=8, kv_heads=2, head_dim=8),
)
#: Of `snapkv-decode`.
WINDOW, POOL = 16, 5
SINKS = 4
#: How many tokens streaming drops at once.
DROPS = (1, 2, 7)


def tensors(
    seed: int, tokens: int, q_heads: int, kv_heads: int, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [tokens, q_heads, head_dim] and keys [tokens, kv_heads, head_dim], float32.

    Keys of a head have a direction in common and come in near copies, as keydiff looks for; the
    queries are large enough that attention is far from even.
    """
    draw = random.Random(seed)

    def some(heads: int) -> torch.Tensor:
        return torch.tensor([[draw.gauss(0, 1) for _ in range(head_dim)] for _ in range(heads)])

    common = some(kv_heads)
    queries, keys = [], []
    for token in range(tokens):
        key = common + some(kv_heads)
        if token and draw.random() < 0.3:
            key = keys[draw.randrange(token)] + 0.2 * some(kv_heads)
        keys.append(key)
        queries.append(1.5 * some(q_heads))
    return torch.stack(queries), torch.stack(keys)


def attention_to_earlier(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """[q_heads, WINDOW, tokens - WINDOW]: the window's softmax over the tokens before it only."""
    window, earlier = queries[-WINDOW:].transpose(0, 1), keys[:-WINDOW].transpose(0, 1)
    earlier = earlier.repeat_interleave(queries.shape[1] // keys.shape[1], dim=0)
    return torch.softmax(window @ earlier.transpose(1, 2) * queries.shape[2] ** -0.5, dim=-1)


def scores(queries: torch.Tensor, keys: torch.Tensor) -> dict[str, object]:
    """What kvpress says, higher stays: [kv_heads][tokens] for each press."""
    from kvpress import KeyDiffPress, SnapKVPress, StreamingLLMPress, TOVAPress

    tokens, q_heads, head_dim = queries.shape
    # As an attention layer whose queries are its input, and whose rotation turns nothing.
    layer = SimpleNamespace(
        config=SimpleNamespace(num_attention_heads=q_heads, num_key_value_heads=keys.shape[1]),
        head_dim=head_dim,
        q_proj=torch.nn.Identity(),
    )
    hidden = queries.reshape(1, tokens, q_heads * head_dim)
    still = torch.ones(1, tokens, head_dim), torch.zeros(1, tokens, head_dim)
    k = keys.transpose(0, 1)[None]

    def ask(press, attentions=None) -> list[list[float]]:
        given = press.score(layer, hidden, k, k, attentions, {"position_embeddings": still})
        return [[float(f"{x:.7e}") for x in head] for head in given[0].tolist()]

    snapkv = SnapKVPress(0.5, window_size=WINDOW, kernel_size=POOL)
    earlier = torch.zeros(1, q_heads, tokens, tokens)
    earlier[0, :, -WINDOW:, :-WINDOW] = attention_to_earlier(queries, keys)
    return {
        "keydiff": ask(KeyDiffPress(0.5)),
        "tova": ask(TOVAPress(0.5))[0],
        "snapkv": ask(snapkv),
        "snapkv_earlier": ask(snapkv, earlier),
        "streaming": {
            str(drop): ask(StreamingLLMPress((drop - 0.5) / tokens, n_sink=SINKS))[0]
            for drop in DROPS
        },
    }


def main() -> int:
    from importlib.metadata import version

    print(
        json.dumps(
            {
                "made_by": "research/compare_kvpress.py",
                "versions": {name: version(name) for name in ("kvpress", "torch")},
                "cases": [{**case, "scores": scores(*tensors(**case))} for case in CASES],
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
