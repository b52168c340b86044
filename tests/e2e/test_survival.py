# SPDX-License-Identifier: Apache-2.0
"""No request ends the server or wedges it: what each fault once took, and what it gives now (6).

Under the probe, which ends the scheduler at the first slot that is lost or shared.
"""

from __future__ import annotations

import asyncio

import pytest

import harness
from harness import greedy, prompt

pytestmark = pytest.mark.e2e
BUDGET = 64
NEIGHBOUR = dict(input_ids=prompt(20, 1), sampling_params=greedy(120))


@pytest.fixture(scope="module", params=[False, True], ids=["radix", "no-radix"])
def engine(tiny_models, request):
    with harness.engine(
        tiny_models("llama"),
        probe=True,
        kv_budget=BUDGET,
        kv_budget_allow_full=True,
        max_total_tokens=1200,
        context_length=3000,
        disable_radix_cache=request.param,
    ) as running:
        running.alone = running.generate(**NEIGHBOUR)["output_ids"]
        yield running


def beside_a_neighbour(engine, *requests: dict) -> list:
    """What `requests` gave while another request decoded, whose tokens are those it has alone."""

    async def both():
        stream = await engine.async_generate(**NEIGHBOUR, stream=True)
        await anext(stream)
        waiting = asyncio.gather(
            *(engine.async_generate(**one) for one in requests), return_exceptions=True
        )
        *_, last = [chunk async for chunk in stream]
        assert last["output_ids"] == engine.alone
        return await waiting

    engine.probe_report()
    found = engine.loop.run_until_complete(both())
    report = engine.probe_report()
    assert report["idle_available"] + report["idle_evictable"] == report["total"]
    return found


@pytest.mark.parametrize("length", [BUDGET - 1, BUDGET, BUDGET + 1, 300])
@pytest.mark.parametrize("new_tokens", [0, 1])
def test_prompts_around_the_budget_that_hardly_decode(engine, length, new_tokens):
    """With 0 SGLang still launches a decode step, beside rows that decode."""
    request = dict(input_ids=prompt(length, 2), sampling_params=greedy(new_tokens))
    shorter = dict(input_ids=prompt(length, 2), sampling_params=greedy(5))
    for one in beside_a_neighbour(engine, request, request, shorter):
        assert one["meta_info"]["finish_reason"]["type"] == "length"


def test_several_samples_of_a_long_prompt(engine):
    """`n` > 1: SGLang prefills the prompt once by itself, with max_new_tokens 0."""
    request = dict(input_ids=prompt(300, 3), sampling_params=greedy(90) | {"n": 3})
    (found,) = beside_a_neighbour(engine, request)
    assert len(found) == 3
    assert all(one["meta_info"]["kv_resident_tokens"] == BUDGET for one in found)
    assert all(one["output_ids"] == found[0]["output_ids"] for one in found)


@pytest.mark.parametrize(
    "custom_params", [[{"kv_budget": 48}], "kv_budget", 7, True, [], "", 0.5, {"kv_budget": []}]
)
def test_custom_params_of_a_wrong_type_are_refused(engine, custom_params):
    params = greedy(4) | {"custom_params": custom_params}
    (error,) = beside_a_neighbour(engine, dict(input_ids=prompt(9, 4), sampling_params=params))
    assert isinstance(error, ValueError)
    assert "custom_params=" in str(error) or "kv_budget=[]" in str(error)


@pytest.mark.parametrize("token", [512, 10**12, -1])
def test_token_ids_out_of_the_vocabulary_are_refused(engine, token):
    request = dict(input_ids=[3, token, 5], sampling_params=greedy(4))
    (error,) = beside_a_neighbour(engine, request)
    assert isinstance(error, ValueError) and f"input_ids[1]={token}" in str(error)


def test_a_row_that_outgrew_the_pool_ends_where_it_is_retracted(engine):
    """Prompt + output is more than the pool: nothing could prefill it again, nor anything after."""

    async def scene():
        stream = await engine.async_generate(
            input_ids=prompt(20, 5), sampling_params=greedy(2900), stream=True, rid="long"
        )
        async for chunk in stream:
            if chunk["meta_info"]["completion_tokens"] > 1300:
                break
        manager = engine.tokenizer_manager
        from sglang.srt.managers.io_struct import (
            ContinueGenerationReqInput,
            PauseGenerationReqInput,
        )

        await manager.pause_generation(PauseGenerationReqInput(mode="retract"))
        await manager.continue_generation(ContinueGenerationReqInput())
        last = [chunk async for chunk in stream][-1]
        reason = last["meta_info"]["finish_reason"]
        assert reason["type"] == "abort" and "pool of 1200" in reason["message"]
        assert last["meta_info"]["completion_tokens"] > 1300
        return await engine.async_generate(input_ids=prompt(9, 6), sampling_params=greedy(5))

    after = engine.loop.run_until_complete(asyncio.wait_for(scene(), 600))
    assert len(after["output_ids"]) == 5
    report = engine.probe_report()
    assert report["idle_available"] + report["idle_evictable"] == report["total"]
