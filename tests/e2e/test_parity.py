# SPDX-License-Identifier: Apache-2.0
"""A budget that is never reached, and no budget at all, give stock SGLang's tokens (2)."""

from __future__ import annotations

import pytest

import harness
from harness import greedy, prompt

pytestmark = pytest.mark.e2e
PROMPTS = [prompt(length, 300 + length) for length in (5, 33, 64, 129, 300)]
NEW_TOKENS = 150


@pytest.fixture(scope="module")
def stock(tiny_models):
    """Tokens of SGLang with the plugin filtered out (the CPU platform stays).

    A server, not an engine: plugins load once a process, and this process loads ours.
    """
    arguments = ["--model-path", str(tiny_models("llama")), "--dtype", "bfloat16"]
    arguments += ["--skip-tokenizer-init", "--max-total-tokens", "4000", "--sleep-on-idle"]
    with harness.Server(arguments, env={"SGLANG_PLUGINS": "longflow_cpu"}) as server:
        server.wait_ready()
        assert server.request("/longflow/stats")[0] == 404
        results = server.generate(
            {"input_ids": PROMPTS, "sampling_params": [greedy(NEW_TOKENS)] * len(PROMPTS)}
        )
        assert "kv_budget" not in results[0]["meta_info"]
        return harness.outputs(results)


def test_without_a_budget_the_plugin_is_inert(tiny_models, stock):
    with harness.engine(tiny_models("llama"), dtype="bfloat16") as engine:
        results = engine.generate(input_ids=PROMPTS, sampling_params=[greedy(NEW_TOKENS)] * 5)
        assert harness.outputs(results) == stock
        assert not any(key.startswith("kv_") for key in results[0]["meta_info"])
        with pytest.raises(ValueError, match=r"kv_budget: .*without --kv-budget"):
            engine.generate(input_ids=PROMPTS[0], sampling_params=greedy(5, kv_budget=64))


def test_a_budget_that_is_not_reached_gives_stock_tokens(tiny_models, stock):
    """Exactly prompt + new tokens, more than that, and full KV by request."""
    with harness.engine(
        tiny_models("llama"),
        probe=True,
        dtype="bfloat16",
        kv_budget=1000,
        kv_budget_allow_full=True,
    ) as engine:
        for budgets in (
            [len(ids) + NEW_TOKENS for ids in PROMPTS],
            [len(ids) + NEW_TOKENS - 1 for ids in PROMPTS],  # what is really stored
            [1000] * 5,
            [0] * 5,
        ):
            results = engine.generate(
                input_ids=PROMPTS,
                sampling_params=[greedy(NEW_TOKENS, kv_budget=budget) for budget in budgets],
            )
            assert harness.outputs(results) == stock
            for ids, item in zip(PROMPTS, results, strict=True):
                assert item["meta_info"]["kv_overwritten_tokens"] == 0
                assert item["meta_info"]["kv_resident_tokens"] == len(ids) + NEW_TOKENS - 1


def test_budgeted_and_full_requests_in_one_batch(tiny_models, stock):
    """Full-KV requests keep stock's tokens beside budgeted neighbours."""
    with harness.engine(
        tiny_models("llama"), probe=True, dtype="bfloat16", kv_budget=48, kv_budget_allow_full=True
    ) as engine:
        results = engine.generate(
            input_ids=[ids for ids in PROMPTS for _ in range(2)],
            sampling_params=[greedy(NEW_TOKENS, kv_budget=b) for _ in PROMPTS for b in (0, 48)],
        )
        tokens = harness.outputs(results)
        assert tokens[::2] == stock
        assert tokens[1::2] != stock
        assert engine.probe_report()["peak_full_rows"] == 5
