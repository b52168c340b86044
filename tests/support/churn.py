# SPDX-License-Identifier: Apache-2.0
"""Hundreds of mixed requests: budgets, policies, shared prefixes, aborts, refusals."""

from __future__ import annotations

import asyncio
import random

import pytest

from harness import greedy, prompt
from sglang_longflow.policies import make_policy, policy_names


async def churn(engine, count: int, seed: int) -> dict[str, int]:
    """Send `count` mixed requests at random times; returns how many ended in which way."""
    generator = random.Random(seed)
    prefixes = [prompt(60, 7000 + i) for i in range(4)]
    found = {name: make_policy(name) for name in policy_names()}
    policies = [name for name, policy in found.items() if policy.is_fused and not policy.needs.any]
    done = {"finished": 0, "aborted": 0, "prefill only": 0, "refused": 0}
    wrong = ([{"kv_budget": 64}], "kv_budget", 64, {"kv_budget": "64"}, {"kv_buget": 64})

    async def hardly_decodes(ids: list[int], params: dict) -> None:
        """What SGLang prefills without decoding, beside rows that decode."""
        kind = generator.choice(("no tokens", "samples", "score"))
        if kind == "score":
            items = [prompt(generator.randint(1, 60), 9000 + i) for i in range(2)]
            found = await engine.async_score(query=ids, items=items, label_token_ids=[5, 6])
            assert len(found.scores) == 2
        else:
            samples = generator.randint(2, 4) if kind == "samples" else 1
            params |= {"n": samples} if samples > 1 else {"max_new_tokens": 0}
            found = await engine.async_generate(input_ids=ids, sampling_params=params)
            answers = found if samples > 1 else [found]
            counts = [answer["meta_info"]["completion_tokens"] for answer in answers]
            assert counts == [params["max_new_tokens"]] * samples
        done["prefill only"] += 1

    async def is_refused(ids: list[int]) -> None:
        params = greedy(20) | {"custom_params": generator.choice(wrong)}
        with pytest.raises(ValueError):
            await engine.async_generate(input_ids=ids, sampling_params=params)
        done["refused"] += 1

    async def one(i: int) -> None:
        length = generator.choice((1, 8, 30, 95, 96, 97, 140, 260))
        ids = prompt(length, 8000 + i)
        if generator.random() < 0.5:
            ids = generator.choice(prefixes) + ids
        budget = generator.choice((0, 40, 64, 96, 97, 200))
        policy = generator.choice(policies)
        new_tokens = generator.choice((1, 2, 20, 90, 200))
        await asyncio.sleep(generator.random() * 3)
        if i % 10 == 3:
            return await hardly_decodes(ids, greedy(new_tokens, kv_budget=budget, kv_policy=policy))
        if i % 10 == 7:
            return await is_refused(ids)
        # A chunk holds four tokens, or more where the machine is busy: it must not end by itself.
        chance, last_chunk = generator.random(), max(2, new_tokens // 8)
        abort_after = generator.randrange(1, last_chunk) if chance < 0.15 else None
        if abort_after is not None and budget:
            new_tokens = 1500
        rid = f"churn-{i}"
        stream = await engine.async_generate(
            input_ids=ids,
            sampling_params=greedy(new_tokens, kv_budget=budget, kv_policy=policy),
            rid=rid,
            stream=True,
        )
        chunks, last = 0, None
        async for chunk in stream:
            last, chunks = chunk, chunks + 1
            if chunks == abort_after:
                engine.tokenizer_manager.abort_request(rid)
        meta = last["meta_info"]
        if meta["finish_reason"]["type"] == "abort":
            done["aborted"] += 1
            return
        assert meta["completion_tokens"] == new_tokens
        stored = len(ids) + new_tokens - 1
        parts = ("kv_resident_tokens", "kv_overwritten_tokens", "kv_cut_tokens")
        assert sum(meta[part] for part in parts) == stored, meta
        if budget:
            assert meta["kv_resident_tokens"] <= budget
        done["finished"] += 1

    await asyncio.gather(*(one(i) for i in range(count)))
    return done
