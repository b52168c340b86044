# SPDX-License-Identifier: Apache-2.0
"""PromptCut: what each layer keeps of long prompts, against one row and layer at a time."""

import os
from types import SimpleNamespace

import pytest
import torch

from longflow_kernels import prompt_scores
from sglang_longflow.backend import prompt_cut
from sglang_longflow.backend.prompt_cut import PromptCut
from sglang_longflow.core.contracts import KVBudget, PromptRow
from sglang_longflow.core.layers import KVLayers
from sglang_longflow.policies import PromptEnd, make_policy

NO_GPU = os.environ.get("LONGFLOW_TEST_DEVICE", "cpu") == "cpu"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not NO_GPU, reason="runs in Triton's interpreter"),
]

LAYERS, HEADS, KV_HEADS, DIM, SLOTS = 5, 4, 2, 64, 900


def layer_of(layer_id):
    return SimpleNamespace(layer_id=layer_id, scaling=0.125, logit_cap=0.0)


@pytest.mark.parametrize("fused", [True, False], ids=["kernels", "plain"])
@pytest.mark.parametrize("layers_at_once", [1, 2, 5, 100])
def test_every_layer_keeps_what_it_would_alone(fused, layers_at_once, monkeypatch):
    """Rows of several policies and lengths, some with a cached beginning, beside one that stays."""
    keys = torch.randn(LAYERS, SLOTS, KV_HEADS, DIM)
    pool = SimpleNamespace(get_key_buffer=lambda layer: keys[layer])
    table = torch.randperm(SLOTS)[:800].view(4, 200).to(torch.int32)
    queries = torch.randn(LAYERS, 300, HEADS, DIM)
    rows = []
    for place, policy, prompt, budget, end in (
        (2, make_policy("longflow"), 150, 60, 150),
        (0, make_policy("streaming", protect_sink_tokens=3), 90, 40, 200),
        (3, make_policy("longflow-novel"), 200, 199, 240),  # 160 tokens were in the radix tree
        (1, make_policy("longflow", protect_sink_tokens=4), 61, 61, 300),
    ):
        keep = torch.full((LAYERS, budget - 1), -7)
        rows.append(PromptRow(end, place, prompt, KVBudget(budget, policy), keep))
    scored = sum(row.prompt_tokens - 32 for row in rows if row.budget.policy.name != "streaming")
    monkeypatch.setattr(prompt_cut, "MASS_BYTES", 4 * scored * layers_at_once + 3)
    cut = PromptCut(table, pool, KVLayers(tuple(range(LAYERS))), fused)
    for batch in (rows, [], rows):  # nothing of a batch is left in the next
        for row in batch:
            row.keep.fill_(-7)
        cut.begin(batch)
        for layer_id in range(LAYERS) if batch else ():
            cut.record_layer(queries[layer_id], layer_of(layer_id))
    for row in rows:
        policy = row.budget.policy
        for layer_id in range(LAYERS):
            scores = None
            if policy.prompt_window_tokens:
                earlier = table[row.req_pool_idx, : row.prompt_tokens - 32].long()
                window = queries[layer_id, row.query_end - 32 : row.query_end]
                scores = prompt_scores(window, keys[layer_id, earlier], 0.125)[None]
            alone = PromptEnd(row.prompt_tokens, row.budget.tokens - 1, scores, table.device)
            expected = policy.prompt_keep(alone).expand(1, -1)[0]
            assert torch.equal(row.keep[layer_id], expected), (policy.name, layer_id)


def test_a_layer_of_a_long_prompt_alone_may_exceed_the_memory(monkeypatch):
    monkeypatch.setattr(prompt_cut, "MASS_BYTES", 8)
    keys = torch.randn(LAYERS, SLOTS, KV_HEADS, DIM)
    pool = SimpleNamespace(get_key_buffer=lambda layer: keys[layer])
    table = torch.arange(200, dtype=torch.int32)[None]
    row = PromptRow(200, 0, 200, KVBudget(80, make_policy("longflow")), torch.empty(LAYERS, 79))
    cut = PromptCut(table, pool, KVLayers(tuple(range(LAYERS))), fused=False)
    cut.begin([row])
    assert cut.group == 1
