# SPDX-License-Identifier: Apache-2.0
"""One point of a bench: the same requests with one budget on one server, and its numbers."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from sglang_longflow.errors import BenchError
from sglang_longflow.measure.throughput.streams import (
    Stream,
    ask,
    flush_cache,
    gaps,
    latencies,
    percentile,
    session_for,
)

POLL_INTERVAL_S = 0.25
WARM_UP_TOKENS = 8
#: With fewer requests at their budget, a point says nothing about that budget.
ENOUGH_REACHED = 0.2


@dataclass(frozen=True)
class Work:
    """What every point has to do; lengths in tokens.

    Attributes
    ----------
    requests : int
    concurrency : int
        Requests at once; 0 is all of them.
    input, output : int
        Of every request. The output has no other end.
    vocabulary : int
        Prompts are random token ids below it.
    seed : int
    """

    requests: int
    concurrency: int
    input: int
    output: int
    vocabulary: int
    seed: int

    def prompts(self) -> list[list[int]]:
        """The same for every point, each request's own."""
        return [
            self._prompt(random.Random(self.seed * 1_000_003 + i)) for i in range(self.requests)
        ]

    def warm_up_prompt(self) -> list[int]:
        return self._prompt(random.Random(-self.seed - 1))

    def _prompt(self, generator: random.Random) -> list[int]:
        return [generator.randrange(3, self.vocabulary) for _ in range(self.input)]


@dataclass(frozen=True)
class Result:
    """The numbers of one point.

    Attributes
    ----------
    system : str
        "longflow", "stock" or "stock-same"; "server" for one that was running.
    budget : int
        In tokens; 0 is full KV.
    wall_s : float
        From the first request sent to the last token.
    output_tokens_per_s : float
        All output tokens over `wall_s`.
    first_token_s_* : float
        From sending a request to its first token, time in the queue included.
    inter_token_ms_* : float or None
        Mean over all tokens but the first ones; percentiles over the messages of the streams.
    running_peak : int or None
        Most requests seen running at once, asked of the server every 0.25 s. None if it does not
        say, or if no answer saw one running: SGLang renews what it tells every 15 steps
        (`--load-snapshot-publish-interval`), so short work may end before it did.
    retractions : int
        Times that requests lost their slots and started over.
    reached_share : float or None
        Of requests whose row was full at the end; None for full KV.
    resident_tokens_mean : float or None
        KV slots that a request held at its end; None if the server has no plugin.
    """

    system: str
    budget: int
    requests: int
    concurrency: int
    input_tokens: int
    output_tokens: int
    wall_s: float
    output_tokens_per_s: float
    first_token_s_mean: float
    first_token_s_p50: float
    first_token_s_p99: float
    inter_token_ms_mean: float | None
    inter_token_ms_p50: float | None
    inter_token_ms_p99: float | None
    running_peak: int | None
    retractions: int
    reached_share: float | None
    resident_tokens_mean: float | None

    @property
    def is_about_its_budget(self) -> bool:
        """False if too few requests got as far as their budget."""
        return self.reached_share is None or self.reached_share >= ENOUGH_REACHED


def body_of(prompt: list[int], output: int, custom_params: dict[str, Any]) -> dict[str, Any]:
    """A request to ``/generate`` that ends after exactly `output` tokens."""
    sampling: dict[str, Any] = dict(temperature=0, max_new_tokens=output, ignore_eos=True)
    if custom_params:
        sampling["custom_params"] = custom_params
    return dict(input_ids=prompt, sampling_params=sampling, stream=True)


def check(streams: Sequence[Stream], work: Work, where: str, custom_params: dict[str, Any]) -> None:
    """Raise BenchError unless every request did all of its work, with its budget."""
    named = [(f"{where}, request {n} of {len(streams)}", s) for n, s in enumerate(streams, 1)]
    for name, stream in named:  # first: the others may have been broken off because of it
        if stream.problem:
            raise BenchError(f"{name}: {stream.problem}")
    for name, stream in named:
        reason = stream.meta.get("finish_reason") or {}
        if reason.get("type") == "abort":
            raise BenchError(f"{name}: {reason.get('message', 'aborted')}")
        done = stream.messages[-1][1] if stream.messages else 0
        if done != work.output:
            raise BenchError(
                f"{name}: {done} tokens instead of output_tokens={work.output}; SGLang shortens "
                f"what the pool or the model's context cannot hold, input_tokens={work.input} "
                f"included"
            )
        if custom_params and stream.meta.get("kv_budget") != custom_params["kv_budget"]:
            raise BenchError(
                f"{name}: the server did not apply kv_budget={custom_params['kv_budget']}; it runs "
                f"without the plugin or without --kv-budget"
            )


def summarise(
    system: str, budget: int, work: Work, streams: Sequence[Stream], running_peak: int | None
) -> Result:
    """The numbers of a point whose requests have all been answered."""
    began = min(stream.sent for stream in streams)
    wall = max(stream.messages[-1][0] for stream in streams) - began
    first = sorted(stream.messages[0][0] - stream.sent for stream in streams)
    spread = list(gaps(streams))
    per_token = latencies(streams)
    resident = [s.meta["kv_resident_tokens"] for s in streams if "kv_resident_tokens" in s.meta]
    total = work.output * len(streams)

    def ms(seconds: float | None) -> float | None:
        return None if seconds is None else round(1e3 * seconds, 3)

    tokens = sum(count for _, count in spread)
    return Result(
        system=system,
        budget=budget,
        requests=work.requests,
        concurrency=work.concurrency or work.requests,
        input_tokens=work.input,
        output_tokens=work.output,
        wall_s=round(wall, 3),
        output_tokens_per_s=round(total / wall, 2),
        first_token_s_mean=round(statistics.fmean(first), 4),
        first_token_s_p50=round(percentile(first, 0.5) or 0.0, 4),
        first_token_s_p99=round(percentile(first, 0.99) or 0.0, 4),
        inter_token_ms_mean=ms(sum(s for s, _ in spread) / tokens if tokens else None),
        inter_token_ms_p50=ms(percentile(per_token, 0.5)),
        inter_token_ms_p99=ms(percentile(per_token, 0.99)),
        running_peak=running_peak or None,
        retractions=sum(stream.meta.get("num_retractions", 0) for stream in streams),
        reached_share=_reached(resident, budget) if budget else None,
        resident_tokens_mean=round(statistics.fmean(resident), 1) if resident else None,
    )


def _reached(resident: Sequence[int], budget: int) -> float:
    return sum(tokens >= budget for tokens in resident) / len(resident)


async def _watch(session: aiohttp.ClientSession, url: str, peaks: list[int]) -> None:
    """Ask what runs until cancelled; `peaks` stays empty if the server does not say.

    A question that a busy server does not answer is no sample, and the next one is asked.
    """
    while True:
        try:
            async with session.get(f"{url}/v1/loads?include=core") as response:
                if response.status in (404, 405):  # a router, or another release of SGLang
                    return
                if response.status == 200:
                    loads = (await response.json())["loads"]
                    peaks.append(sum(load["num_running_reqs"] for load in loads))
        except (ValueError, KeyError):  # another answer than SGLang's
            return
        except (aiohttp.ClientError, OSError):
            pass
        await asyncio.sleep(POLL_INTERVAL_S)


async def _measure(
    system: str,
    url: str,
    budget: int,
    work: Work,
    custom_params: dict[str, Any],
    api_key: str | None,
    show: Callable[[int], None],
) -> Result:
    where = f"{system}, budget {budget or 'full'}"
    streams = [Stream() for _ in range(work.requests)]
    gate = asyncio.Semaphore(work.concurrency or work.requests)

    async def one(session: aiohttp.ClientSession, prompt: list[int], stream: Stream) -> None:
        async with gate:
            await ask(session, url, body_of(prompt, work.output, custom_params), stream)

    async with session_for(api_key) as session:
        try:
            await flush_cache(session, url)
            warm = Stream()
            tokens = min(WARM_UP_TOKENS, work.output)
            await ask(session, url, body_of(work.warm_up_prompt(), tokens, custom_params), warm)
            if warm.problem:
                raise BenchError(f"{where}: {warm.problem}")
            await flush_cache(session, url)
        except (aiohttp.ClientError, OSError) as error:
            raise BenchError(f"{where}: {url} does not answer: {error}") from None
        peaks: list[int] = []
        watch = asyncio.create_task(_watch(session, url, peaks))
        pairs = zip(work.prompts(), streams, strict=True)
        waiting = {asyncio.create_task(one(session, prompt, stream)) for prompt, stream in pairs}
        try:
            while waiting:
                _, waiting = await asyncio.wait(waiting, timeout=POLL_INTERVAL_S)
                show(sum(stream.messages[-1][1] for stream in streams if stream.messages))
                if any(stream.problem for stream in streams):
                    break  # what is left of the work proves nothing
        finally:
            for task in (watch, *waiting):
                task.cancel()
            await asyncio.gather(watch, *waiting, return_exceptions=True)
    check(streams, work, where, custom_params)
    return summarise(system, budget, work, streams, max(peaks, default=None))


async def _ask_for_one_token(
    url: str, prompt: list[int], points: Iterable[tuple[str, dict[str, Any]]], api_key: str | None
) -> None:
    async with session_for(api_key) as session:
        for where, custom_params in points:
            stream = Stream()
            await ask(session, url, body_of(prompt, 1, custom_params), stream)
            reason = stream.meta.get("finish_reason") or {}
            problem = stream.problem
            if reason.get("type") == "abort":  # what only the scheduler can refuse
                problem = reason.get("message", "aborted")
            if problem:
                raise BenchError(f"{where}: {problem}")


def require_accepted(
    url: str, prompt: list[int], points: Iterable[tuple[str, dict[str, Any]]], api_key: str | None
) -> None:
    """Ask a running server for one token with the settings of each point.

    What it refuses it then refuses at once, and not after the minutes of the points before.

    Parameters
    ----------
    points : iterable of (str, dict)
        What it is, for the message, and the ``custom_params`` of its requests.

    Raises
    ------
    BenchError
        The server's own words for the first one that it refuses.
    """
    asyncio.run(_ask_for_one_token(url, prompt, points, api_key))


def measure(
    system: str,
    url: str,
    budget: int,
    work: Work,
    custom_params: dict[str, Any],
    show: Callable[[int], None],
    api_key: str | None = None,
) -> Result:
    """Do the work once, from an empty cache.

    Parameters
    ----------
    system, budget
        As in `Result`.
    custom_params : dict
        Of every request; empty for a server that does not know the plugin.
    show : callable
        Gets the tokens that have arrived, several times a second.

    Raises
    ------
    BenchError
        A request was refused, shortened, or served without its budget.
    """
    began = time.monotonic()
    try:
        return asyncio.run(_measure(system, url, budget, work, custom_params, api_key, show))
    except aiohttp.ClientError as error:
        seconds = time.monotonic() - began
        raise BenchError(f"{url}: {type(error).__name__} after {seconds:.0f} s: {error}") from None
