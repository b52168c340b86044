# SPDX-License-Identifier: Apache-2.0
"""Clients that keep asking, and a record of every request they sent."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field

import aiohttp

WORDS = "river stone cloud tower garden winter letter engine forest mirror candle harbor".split()


@dataclass
class Sent:
    """One request; `problem` is empty if every token came."""

    rid: str
    at: float
    stream: bool
    tokens: int
    done: float | None = None
    status: int = 0
    problem: str = "unfinished"


@dataclass
class Load:
    """Closed-loop clients on ``/generate``; `clients` of them ask at any time.

    Half of the requests stream. A request is good if it was answered with 200 and with all of its
    tokens; nothing is sent a second time.
    """

    url: str
    tokens: tuple[int, int]
    seed: int = 0
    clients: int = 0
    sent: list[Sent] = field(default_factory=list)
    _tasks: set[asyncio.Task] = field(default_factory=set)

    @property
    def open(self) -> int:
        """Requests without an answer."""
        return sum(one.done is None for one in self.sent)

    @property
    def lost(self) -> list[Sent]:
        return [one for one in self.sent if one.done is not None and one.problem]

    def set_clients(self, clients: int) -> None:
        """More start now; with fewer, some stop after their request."""
        self.clients = clients
        for number in range(len(self._tasks), clients):
            task = asyncio.create_task(self._client(number))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def finish(self, timeout_s: float) -> None:
        """No new requests; wait for all that were sent."""
        self.clients = 0
        if self._tasks:
            _, pending = await asyncio.wait(self._tasks, timeout=timeout_s)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _client(self, number: int) -> None:
        generator = random.Random(f"{self.seed}-{number}-{len(self.sent)}")
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:
            while len(self._tasks) <= self.clients:
                await self._ask(session, generator)

    async def _ask(self, session: aiohttp.ClientSession, generator: random.Random) -> None:
        tokens = generator.randint(*self.tokens)
        one = Sent(f"load-{len(self.sent)}", time.monotonic(), len(self.sent) % 2 == 0, tokens)
        self.sent.append(one)
        body = {
            "text": " ".join(generator.choices(WORDS, k=12)),
            "rid": one.rid,
            "stream": one.stream,
            "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True},
        }
        try:
            async with session.post(self.url + "/generate", json=body) as response:
                one.status = response.status
                text = await response.text()
            one.problem = _problem(one, text)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            one.problem = f"{type(error).__name__}: {error}"
        one.done = time.monotonic()


def _problem(one: Sent, text: str) -> str:
    if one.status != 200:
        return f"status {one.status}: {text[:200]}"
    if one.stream:
        events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
        if events[-1:] != ["[DONE]"]:
            return f"the stream ended after {len(events)} events"
        text = events[-2]
    answer = json.loads(text)
    if "meta_info" not in answer:
        return f"no answer: {text[:200]}"
    got = answer["meta_info"]["completion_tokens"]
    return "" if got == one.tokens else f"{got} tokens of {one.tokens}"
