# SPDX-License-Identifier: Apache-2.0
"""Clients of a soak: they ask, hang up, abort and send nonsense, and note what became of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp

import soak_requests as requests

#: What a client does next, and how often.
KINDS = {
    "generate": 28,
    "completion": 12,
    "prefill only": 10,
    "conversation": 8,  # of three turns
    "abort": 12,
    "hang up": 14,
    "malformed": 16,
}


@dataclass
class Note:
    """What became of one request."""

    rid: str
    kind: str
    at: float
    outcome: str = "open"  # ok, refused, aborted, hung up, failed
    detail: str = ""
    done: float = 0.0
    sent_to: str = ""  # the worker that was asked directly


@dataclass
class Traffic:
    """`clients` that each do one thing after the other, through the router; pauses up to `pause_s`.

    `workers` gives the addresses that serve now: aborts and half of the malformed requests go to
    them directly, because the router has no route for the former and a parser for the latter.
    """

    url: str
    workers: Callable[[], list[str]]
    clients: int
    seed: int
    pause_s: float = 0.0
    notes: list[Note] = field(default_factory=list)
    stopping: bool = False
    _tasks: list[asyncio.Task] = field(default_factory=list)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._client(i)) for i in range(self.clients)]

    async def stop(self, timeout_s: float) -> None:
        """Every client ends what it does."""
        self.stopping = True
        done, pending = await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()  # a mistake in here must not pass as quiet

    def outcomes(self) -> Counter:
        return Counter((note.kind, note.outcome) for note in self.notes)

    def failed(self) -> list[Note]:
        return [note for note in self.notes if note.outcome in ("failed", "open")]

    def _note(self, kind: str) -> Note:
        note = Note(f"soak-{len(self.notes)}", kind, time.time())
        self.notes.append(note)
        return note

    async def _client(self, number: int) -> None:
        generator = random.Random(f"{self.seed}-{number}")
        timeout = aiohttp.ClientTimeout(total=300)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while not self.stopping:
                (kind,) = generator.choices(list(KINDS), list(KINDS.values()))
                act = getattr(self, "_" + kind.replace(" ", "_"))
                await act(session, generator)
                await asyncio.sleep(generator.random() * self.pause_s)

    async def _full(
        self, session, note: Note, request: requests.Request, url: str | None = None
    ) -> str:
        """Send, read to the end, judge; returns the text of the answer."""
        text = ""
        try:
            async with session.post(
                (url or self.url) + request.path, json=request.body
            ) as response:
                text = await response.text()
            note.detail = requests.problem(request, response.status, text)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            note.detail = f"{type(error).__name__}: {error}"
        note.done = time.time()
        note.outcome = "failed" if note.detail else "ok"
        return text

    async def _generate(self, session, generator) -> None:
        note = self._note("generate")
        await self._full(session, note, requests.generate(generator, note.rid))

    async def _completion(self, session, generator) -> None:
        note = self._note("completion")
        await self._full(session, note, requests.completion(generator, note.rid))

    async def _prefill_only(self, session, generator) -> None:
        """To a worker directly: the router passes neither scores nor several samples on."""
        note = self._note("prefill only")
        workers = self.workers()
        note.sent_to = generator.choice(workers) if workers else self.url
        request = requests.prefill_only(generator, note.rid)
        await self._full(session, note, request, note.sent_to)

    async def _conversation(self, session, generator) -> None:
        """Turns that share all of what was said before."""
        messages = [{"role": "system", "content": generator.choice(requests.PREFIXES)}]
        for _ in range(3):
            note = self._note("conversation")
            messages.append({"role": "user", "content": requests.words(generator, 30)})
            await self._full(session, note, requests.chat(generator, note.rid, messages))
            if note.outcome != "ok":
                return
            # Any answer will do: what counts is that the next prompt begins with this one.
            messages.append({"role": "assistant", "content": requests.words(generator, 30)})

    async def _abort(self, session, generator) -> None:
        """Another connection aborts it, while it waits or runs."""
        note = self._note("abort")
        request = requests.generate(generator, note.rid, tokens=300)
        asking = asyncio.create_task(self._full(session, note, request))
        await asyncio.sleep(generator.choice((0.0, 0.05, 0.3, 1.0)))
        for worker in self.workers():
            try:
                async with session.post(worker + "/abort_request", json={"rid": note.rid}):
                    pass
            except (aiohttp.ClientError, OSError):
                continue  # it was killed in this moment
        text = await asking
        if note.outcome == "failed" and '"abort"' in text:
            note.outcome = "aborted"

    async def _hang_up(self, session, generator) -> None:
        """The connection ends in the middle of an answer, or before it begins."""
        note = self._note("hang up")
        request = requests.generate(generator, note.rid, tokens=300)
        chunks = generator.randint(1, 40)
        try:
            async with asyncio.timeout(generator.choice((0.05, 0.5, 2.0))):
                async with session.post(self.url + request.path, json=request.body) as response:
                    async for _ in response.content:
                        chunks -= 1
                        if not chunks:
                            response.close()  # the transport, with what it still holds
                            break
        except TimeoutError:
            pass  # left before the end
        except (aiohttp.ClientError, OSError) as error:
            note.detail = f"{type(error).__name__}: {error}"
        note.done, note.outcome = time.time(), "hung up"

    async def _malformed(self, session, generator) -> None:
        note = self._note("malformed")
        request = requests.malformed(generator)
        bases = [self.url] if generator.random() < 0.5 else [*self.workers()] or [self.url]
        base = generator.choice(bases)
        kind = {"data": request.body} if isinstance(request.body, bytes) else {"json": request.body}
        headers = {"Content-Type": "application/json"}
        text, status = "", 0
        try:
            address = base + request.path
            async with session.post(address, headers=headers, **kind) as response:
                status, text = response.status, await response.text()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            text = f"{type(error).__name__}: {error}"
        note.done = time.time()
        if requests.is_refusal(status, text):
            note.outcome = "refused"
        else:
            where = "router" if base == self.url else base
            note.detail = f"{where}{request.path} {request.body!r}: {status} {text}"[:600]
            note.outcome = "failed"
