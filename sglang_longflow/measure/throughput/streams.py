# SPDX-License-Identifier: Apache-2.0
"""Streamed requests as they come in, and what follows from their times.

The client is aiohttp and not `client.http`: hundreds of streams at once are read in one thread, and
what a client itself needs for a message is part of every latency. Each measurement in the results
was made with it; another client would not be compared like with like.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

from sglang_longflow.client.http import event_of, problem_of
from sglang_longflow.errors import BenchError


@dataclass
class Stream:
    """One request.

    Attributes
    ----------
    sent : float
        When, by ``time.monotonic()``; so are all times here.
    messages : list of (float, int)
        Time and tokens so far of every message.
    meta : dict
        ``meta_info`` of the last message.
    finished : bool
    problem : str
        Why there is no answer; empty if there is one.
    """

    sent: float = 0.0
    messages: list[tuple[float, int]] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    problem: str = ""


def session_for(api_key: str | None = None) -> aiohttp.ClientSession:
    """A session without limits: the server queues, not the client."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
        read_bufsize=1 << 20,
    )


async def ask(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any], stream: Stream
) -> None:
    """Send a request to ``/generate`` and note what comes; never raises for a refusal."""
    stream.sent = time.monotonic()
    try:
        async with session.post(f"{url}/generate", json=body) as response:
            if response.status != 200:
                stream.problem = f"HTTP {response.status}: {(await response.text())[:300]}"
                return
            async for line in response.content:
                if event := event_of(line):
                    _take(event, stream)
    except (aiohttp.ClientError, OSError, ValueError, KeyError) as error:
        stream.problem = f"{type(error).__name__}: {error}"


def _take(event: dict[str, Any], stream: Stream) -> None:
    if problem := problem_of(event):
        stream.problem = problem
        return
    stream.meta = event["meta_info"]
    stream.messages.append((time.monotonic(), stream.meta["completion_tokens"]))
    stream.finished = stream.meta["finish_reason"] is not None


async def flush_cache(session: aiohttp.ClientSession, url: str, timeout_s: float = 600) -> None:
    """Wait until nothing runs, and empty the radix cache.

    Raises
    ------
    BenchError
        Requests still run after that time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        async with session.post(f"{url}/flush_cache") as response:
            if response.status == 200:
                return
            reason = f"HTTP {response.status}: {(await response.text())[:200]}"
        if time.monotonic() > deadline:
            raise BenchError(f"{url}/flush_cache: not empty after {timeout_s:.0f} s: {reason}")
        await asyncio.sleep(0.3)


def tokens_at(stream: Stream, moment: float) -> int:
    """Tokens that had arrived by `moment`."""
    return max((count for when, count in stream.messages if when <= moment), default=0)


def gaps(
    streams: Iterable[Stream], start: float = -math.inf, end: float = math.inf
) -> Iterator[tuple[float, int]]:
    """(seconds since the message before, tokens) of every message in a window but the first."""
    for stream in streams:
        for (t0, n0), (t1, n1) in zip(stream.messages, stream.messages[1:]):
            if start <= t1 <= end and n1 > n0:
                yield t1 - t0, n1 - n0


def latencies(
    streams: Iterable[Stream], start: float = -math.inf, end: float = math.inf
) -> list[float]:
    """Seconds per token of every message that arrived in the window."""
    return [seconds / tokens for seconds, tokens in gaps(streams, start, end)]


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value that `share` of them are at or below; None if there is none.

    Between two values it is interpolated linearly (numpy's default, Hyndman and Fan's type 7): the
    median of two is their mean. Results before release 0.2.0 have the next larger value instead.
    """
    return float(np.quantile(values, share)) if values else None
