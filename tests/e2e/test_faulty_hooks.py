# SPDX-License-Identifier: Apache-2.0
"""A hook that fails ends the request it failed for: the process, the pool and others go on (6)."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import HTTPException

import faulty_hooks
import harness
from harness import greedy, prompt

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def engine(tiny_models):
    with harness.engine(
        tiny_models("llama"),
        scheduler=faulty_hooks.run_scheduler_process,
        kv_budget=64,
        kv_budget_allow_full=True,
        max_total_tokens=2000,
        chunked_prefill_size=128,
    ) as running:
        yield running


#: The prompt and length that lead through a function.
REACHES = {
    "report:_latest": (40, 300),  # it only watches: the request goes on to its end
    "prompt:_to_cut": (300, 20),
    "admission:_end_chunk": (300, 20),
    "admission:_add_chunked_req": (300, 20),
}


@pytest.mark.parametrize("name", faulty_hooks.FUNCTIONS)
def test_one_request_ends_and_all_others_go_on(engine, name):
    neighbour = dict(input_ids=prompt(20, 1), sampling_params=greedy(200))
    alone = engine.generate(**neighbour)["output_ids"]
    # So long that it runs when another comes in, or is retracted, on any machine.
    length, new_tokens = REACHES.get(name, (40, 3500))

    started = asyncio.Event()

    async def fail() -> str:
        """Why it ended; empty if it had all of its tokens."""
        try:
            stream = await engine.async_generate(
                input_ids=prompt(length, 2),
                sampling_params=greedy(new_tokens),
                rid=f"fault:{name}",
                stream=True,
            )
            async for chunk in stream:
                started.set()
                reason = chunk["meta_info"]["finish_reason"]
            return reason.get("message", "") if reason["type"] == "abort" else ""
        except HTTPException as error:
            assert error.status_code == 500
            return str(error.detail)
        finally:
            started.set()

    async def scene():
        stream = await engine.async_generate(**neighbour, stream=True)
        await anext(stream)
        faulty = asyncio.create_task(fail())
        await started.wait()  # some are called where another request comes in
        if name == "slots:reset_for_retract":
            await retract(engine)
        beside = asyncio.create_task(
            engine.async_generate(input_ids=prompt(30, 1), sampling_params=greedy(50))
        )
        ends = await asyncio.wait_for(asyncio.gather(faulty, beside), 600)
        *_, last = [chunk async for chunk in stream]
        return ends, last

    (faulty, beside), last = engine.loop.run_until_complete(scene())
    assert last["meta_info"]["completion_tokens"] == 200
    assert beside["meta_info"]["completion_tokens"] == 50
    if name == "report:_latest":  # it only watches: the request has its tokens
        assert faulty == ""
    else:
        assert f"a fault in {name}" in faulty
    if name != "slots:reset_for_retract":
        assert last["output_ids"] == alone
    assert (
        len(engine.generate(input_ids=prompt(9, 3), sampling_params=greedy(5))["output_ids"]) == 5
    )
    stats = engine.get_server_info()["internal_states"][0]["longflow"]
    assert stats["pool"]["available_tokens"] + stats["pool"]["evictable_tokens"] == 2000


async def retract(engine) -> None:
    from sglang.srt.managers.io_struct import ContinueGenerationReqInput, PauseGenerationReqInput

    await engine.tokenizer_manager.pause_generation(PauseGenerationReqInput(mode="retract"))
    await engine.tokenizer_manager.continue_generation(ContinueGenerationReqInput())
