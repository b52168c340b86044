# SPDX-License-Identifier: Apache-2.0
"""Judges a fuzzed server: alive, pool whole, neighbours' tokens unchanged, everything answered."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from fuzz_call import SESSIONS, Call

#: An accepted request with a short answer is answered or refused within this time.
ANSWER_LIMIT_S = 300.0
IDLE_LIMIT_S = 30.0
CANARY_LIMIT_S = 300.0
#: Answers that each of the askers compares between two checkpoints, and when it gives that up.
LEAST_COMPARED = 2
MOST_ASKED = 100
#: These end or restart what a neighbour runs, by design.
ABORTING = ("/abort_request", "/pause_generation", "/update_weight", "/close_session")


class Guilty(Exception):
    """The server broke a promise; the message says which."""

    def __init__(self, kind: str, detail: str):
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


@dataclass(frozen=True)
class Outcome:
    """How a call ended: a status, or `dropped`, `hung up`, `timed out`, `cut off`."""

    status: str
    text: str = ""


class Client:
    """One connection for each call: nothing of one call reaches the next."""

    def __init__(self, url: str):
        self.url = url
        self.session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self.session = aiohttp.ClientSession(connector=connector)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.session is not None
        await self.session.close()

    async def send(self, call: Call, limit_s: float = ANSWER_LIMIT_S) -> Outcome:
        """Send a call and read its whole answer, or hang up as it says."""
        try:
            async with asyncio.timeout(call.hang_up_s or limit_s):
                return await self._send(call)
        except TimeoutError:
            return Outcome("hung up" if call.hang_up_s else "timed out")

    async def _send(self, call: Call) -> Outcome:
        assert self.session is not None
        headers = {"Content-Type": call.content_type} if call.content_type else {}
        try:
            async with self.session.request(
                call.method,
                self.url + call.path,
                data=call.payload(),
                headers=headers,
                skip_auto_headers=("Content-Type",),
            ) as response:
                try:
                    data = await response.read()
                except aiohttp.ClientError as error:
                    return Outcome("cut off", str(error))
                return Outcome(str(response.status), data.decode(errors="replace"))
        except (aiohttp.ClientError, OSError) as error:
            return Outcome("dropped", f"{type(error).__name__}: {error}")

    async def ask(self, method: str, path: str, body: Any = None, limit_s: float = 30) -> Outcome:
        return await self.send(Call(method, path, body), limit_s)


def neighbours(budget_tokens: int) -> list[dict[str, Any]]:
    """Fixed greedy requests, with full KV and with budgets that are reached."""

    def one(length: int, start: int, new_tokens: int, **custom: Any) -> dict[str, Any]:
        params: dict[str, Any] = {"temperature": 0, "max_new_tokens": new_tokens}
        params["ignore_eos"] = True
        if budget_tokens:
            params["custom_params"] = custom
        ids = [3 + (start + 31 * i) % 40_000 for i in range(length)]
        return {"input_ids": ids, "sampling_params": params}

    return [
        one(12, 100, 24, kv_budget=0),
        one(30, 9_000, 60, kv_budget=48),
        one(130, 20_000, 12, kv_budget=48),
        one(60, 31_000, 20, kv_budget=64, kv_policy="longflow"),
        one(80, 5_000, 16, kv_budget=0),
    ]


@dataclass
class Judge:
    """One running server and what is expected of it.

    Parameters
    ----------
    client : Client
    process : Popen
        The server's first process, which serves HTTP.
    budget_tokens : int
        0 for a server without the plugin's budget.
    pool_tokens : int
    """

    client: Client
    process: Any
    budget_tokens: int
    pool_tokens: int
    alone: list[list[int]] = field(default_factory=list)
    pids: dict[int, str] = field(default_factory=dict)
    #: On a GPU in 16 bits, sums depend on who shares the batch: there lengths are compared.
    exact_tokens: bool = True
    #: When the last call that may end a neighbour was sent, or came back.
    last_abort: float = 0.0
    neighbour_answers: int = 0
    neighbour_refusals: Counter = field(default_factory=Counter)
    notes: Counter = field(default_factory=Counter)

    async def meet(self) -> None:
        """Note the processes, and the neighbours' tokens on the quiet server, twice."""
        self.pids = sglang_processes(self.process.pid)
        if not any("scheduler" in name for name in self.pids.values()):
            raise RuntimeError(f"no scheduler below {self.process.pid}: {self.pids}")
        bodies = neighbours(self.budget_tokens)
        first = [await self._canary(body) for body in bodies]
        await self.client.ask("POST", "/flush_cache")
        again = [await self._canary(body) for body in bodies]
        if not all(map(self._same, first, again)):
            raise RuntimeError("the neighbours' tokens differ on a quiet server")
        self.alone = first

    def _same(self, got: list[int], alone: list[int]) -> bool:
        return got == alone if self.exact_tokens else len(got) == len(alone)

    async def _canary(self, body: dict[str, Any]) -> list[int]:
        outcome = await self.client.ask("POST", "/generate", body, CANARY_LIMIT_S)
        if outcome.status != "200":
            raise Guilty("canary", f"{outcome.status}: {outcome.text[:300]}")
        answer = json.loads(outcome.text)
        if answer["meta_info"]["finish_reason"]["type"] != "length":
            raise Guilty("canary", f"ended early: {answer['meta_info']['finish_reason']}")
        return answer["output_ids"]

    def alive(self) -> None:
        if (code := self.process.poll()) is not None:
            raise Guilty("died", f"the server's process ended with {code}")
        now = sglang_processes(self.process.pid)
        gone = {pid: name for pid, name in self.pids.items() if now.get(pid) != name}
        if gone:
            raise Guilty("died", f"processes are gone: {gone}")

    def saw(self, call: Call) -> None:
        """Called where a call is sent and where it ended."""
        if call.path.startswith(ABORTING):
            self.last_abort = time.monotonic()

    async def keep_asking(self, which: int, stop: asyncio.Event) -> None:
        """Ask one neighbour after the other until told to stop; every answer is compared.

        However short the time was and however many were aborted, `LEAST_COMPARED` are: told to
        stop, nobody aborts any more.
        """
        bodies = neighbours(self.budget_tokens)
        compared = 0
        for asked in itertools.count():
            if stop.is_set() and (compared >= LEAST_COMPARED or asked >= MOST_ASKED):
                return
            index = (which + asked) % len(bodies)
            compared += await self.ask_neighbour(index, bodies[index])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.05)

    async def ask_neighbour(self, index: int, body: dict[str, Any]) -> bool:
        """Ask one; whether its answer was whole and compared."""
        began = time.monotonic()
        outcome = await self.client.ask("POST", "/generate", body, ANSWER_LIMIT_S)
        if outcome.status in ("dropped", "cut off"):
            self.neighbour_refusals[outcome.status] += 1
            await asyncio.sleep(0.5)
            self.alive()
            raise Guilty("neighbour dropped", f"neighbour {index}: {outcome}")
        if outcome.status == "timed out":
            raise Guilty("hang", f"neighbour {index} has no answer after {ANSWER_LIMIT_S} s")
        aborted = self.last_abort > began - 2
        if outcome.status != "200":
            # The queue is full, or somebody aborted everything: told why.
            self.neighbour_refusals[f"{outcome.status} {outcome.text[:60]}"] += 1
            if outcome.status == "503" or aborted:
                return False
            raise Guilty("neighbour refused", f"neighbour {index}: {outcome}")
        answer = json.loads(outcome.text)
        meta, got, alone = answer["meta_info"], answer["output_ids"], self.alone[index]
        if meta["finish_reason"]["type"] == "abort":
            self.neighbour_refusals[f"abort {str(meta['finish_reason'])[:60]}"] += 1
            if not (aborted or "queue" in str(meta["finish_reason"])):
                raise Guilty("neighbour aborted", f"neighbour {index}: {meta['finish_reason']}")
            if not self._same(got, alone[: len(got)]) and not meta.get("num_retractions"):
                raise Guilty("tokens", f"neighbour {index}, aborted: {got} instead of {alone}")
            return False
        self.neighbour_answers += 1
        # A retracted row with a budget starts over and may answer otherwise:
        # docs/understand/semantics.md.
        budgeted = body["sampling_params"].get("custom_params", {}).get("kv_budget")
        if not self._same(got, alone) and not (budgeted and meta.get("num_retractions")):
            raise Guilty("tokens", f"neighbour {index}: {got} instead of {alone}; {meta}")
        return True

    async def checkpoint(self) -> None:
        """Everything has been answered: the server must become idle and whole, and serve."""
        self.alive()
        await self._told("POST", "/continue_generation", {})
        for session in SESSIONS:
            await self.client.ask("POST", "/close_session", {"session_id": session})
        if self.budget_tokens:
            await self._wait_idle()
        for body, alone in zip(neighbours(self.budget_tokens), self.alone, strict=True):
            got = await self._canary(body)
            if not self._same(got, alone):
                raise Guilty("tokens", f"on a quiet server: {got} instead of {alone}")
        if self.budget_tokens:
            await self._wait_idle()
        self.alive()

    async def _told(self, method: str, path: str, body: Any = None) -> str:
        outcome = await self.client.ask(method, path, body, ANSWER_LIMIT_S)
        if outcome.status != "200":
            self.alive()
            raise Guilty(
                "hang" if outcome.status == "timed out" else "control", f"{path}: {outcome}"
            )
        return outcome.text

    async def _wait_idle(self) -> None:
        deadline, aborted = time.monotonic() + IDLE_LIMIT_S, False
        while True:
            stats = json.loads(await self._told("GET", "/longflow/stats?max_age_s=0"))
            busy = [*stats["requests"], *stats["prefilling"], *stats["queue"]]
            pool = stats["pool"]
            if not busy and not stats["queued_requests"]:
                if not (wrong := pool_problem(stats, self.pool_tokens)):
                    return
                if time.monotonic() > deadline:
                    raise Guilty("pool", wrong)
            elif time.monotonic() > deadline and not aborted:
                # Answers in the background (/v1/responses) may go on; an abort must end them.
                self.notes["still running after 30 s: aborted all"] += 1
                await self._told("POST", "/abort_request", {"abort_all": True})
                deadline, aborted = time.monotonic() + IDLE_LIMIT_S, True
            elif time.monotonic() > deadline:
                raise Guilty("hang", f"still not idle after an abort of all: {busy[:3]}, {pool}")
            await asyncio.sleep(0.2)


def pool_problem(stats: dict[str, Any], total_tokens: int) -> str:
    """What is wrong with the pool of an idle server; empty if nothing."""
    pool, held = stats["pool"], stats["tree_held_tokens"]
    if pool["available_tokens"] + pool["evictable_tokens"] != pool["total_tokens"] or held:
        return f"an idle server's pool: {pool}, held in the tree: {held}"
    if pool["total_tokens"] != total_tokens:
        return f"the pool had {total_tokens} tokens and has {pool['total_tokens']}"
    return ""


def sglang_processes(pid: int) -> dict[int, str]:
    """Process ids of a server and their names: itself, scheduler, detokenizer."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
            if state != "Z":
                parents.setdefault(int(parent), []).append(int(stat.parent.name))
    found, todo = {pid: "http"}, [pid]
    while todo:
        for child in parents.get(todo.pop(), []):
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{child}/cmdline").read_text().split("\0")[0]
                if name.startswith("sglang::"):
                    found[child] = name
            todo.append(child)
    return found


_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


def tracebacks(log: str) -> Counter:
    """Exceptions of a log: the last line, with the innermost frames of SGLang or of ours."""
    found: Counter = Counter()
    lines = log.splitlines()
    index = 0
    while index < len(lines):
        if "Traceback (most recent call last)" not in lines[index]:
            index += 1
            continue
        frames: list[str] = []
        index += 1
        while index < len(lines):
            line = re.sub(r"^\[[^\]]*\] ", "", lines[index])
            if frame := _FRAME.search(line):
                path = frame[1]
                short = path.rsplit("site-packages/", 1)[-1].replace(os.getcwd() + "/", "")
                frames.append(f"{short}:{frame[2]} {frame[3]}")
            elif line.strip() and not line.startswith((" ", "|")):
                break
            index += 1
        if index >= len(lines):
            break
        own = [
            f for f in frames if f.startswith(("sglang", "longflow")) or "/sglang_longflow/" in f
        ]
        error = re.sub(r"\d{4,}|0x[0-9a-f]+|'[^']{40,}'|\"[^\"]{40,}\"", "…", lines[index])[:200]
        found[f"{error}  [{' < '.join(reversed((own or frames)[-3:]))}]"] += 1
    return found


def is_ours(signature: str) -> bool:
    """Whether an exception was raised in this package; a refusal is none."""
    raised_in = signature.rpartition("  [")[2].split(" < ")[0]
    ours = raised_in.startswith(("sglang_longflow", "longflow_kernels", "kernels/longflow"))
    return (ours or "/sglang_longflow/" in raised_in) and "BudgetError" not in signature
