# SPDX-License-Identifier: Apache-2.0
"""The judge finds what it is there to find: each fault in a server of our own that has just it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

import fuzz_judge
import fuzz_run
from fuzz_call import Call

POOL = {"total_tokens": 400, "available_tokens": 380, "evictable_tokens": 20}
STATS = {"pool": POOL, "tree_held_tokens": 0, "queued_requests": 0}
STATS |= {"requests": [], "prefilling": [], "queue": []}


class Process:
    pid, code = 1, None

    def poll(self) -> int | None:
        return self.code


class Log:
    text = ""

    def read_text(self, errors: str = "") -> str:
        return self.text


class Fake:
    """Answers like a healthy server; a test replaces one thing after the quiet start."""

    def __init__(self) -> None:
        self.process, self.log, self.over = Process(), Log(), asyncio.Event()
        self.stats: dict[str, Any] = STATS
        self.answer: Callable[[dict], Any] = self.right

    @staticmethod
    def right(body: dict) -> Any:
        ids = [body["input_ids"][0] + i for i in range(body["sampling_params"]["max_new_tokens"])]
        return {"output_ids": ids, "meta_info": {"finish_reason": {"type": "length"}}}

    async def generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        if "fuzz" in body:
            return await self.fuzzed(request, body["fuzz"])
        answer = self.answer(body)
        return answer if isinstance(answer, web.Response) else web.json_response(answer)

    async def fuzzed(self, request: web.Request, what: str) -> web.Response:
        if what == "hang":
            await self.over.wait()
        if what == "kill":
            self.process.code = -9
            request.transport.close()
        return web.Response(text="{}")


async def judged(change: Callable[[Fake], None], calls: list[Call]) -> fuzz_run.Report:
    fake = Fake()

    async def stats(request):
        return web.json_response(fake.stats)

    async def fine(request):
        return web.Response(text="ok")

    app = web.Application()
    app.router.add_post("/generate", fake.generate)
    app.router.add_get("/longflow/stats", stats)
    for path in ("/continue_generation", "/close_session", "/flush_cache", "/abort_request"):
        app.router.add_post(path, fine)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    try:
        async with fuzz_judge.Client(f"http://127.0.0.1:{port}") as client:
            judge = fuzz_judge.Judge(client, fake.process, 48, 400)
            await judge.meet()
            change(fake)
            return await fuzz_run.Run(fake, judge, workers=2, check_every=4).run(calls)
    finally:
        fake.over.set()
        await runner.cleanup()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(fuzz_judge, "IDLE_LIMIT_S", 0.5)
    monkeypatch.setattr(fuzz_run, "LAST_WORDS_S", 0.0)
    names = {1: "http", 2: "sglang::scheduler"}
    monkeypatch.setattr(fuzz_judge, "sglang_processes", lambda pid: dict(names))
    return names


def run(change: Callable[[Fake], None] = lambda fake: None, what: str = "fine") -> fuzz_run.Report:
    fine = Call("POST", "/generate", {"fuzz": "fine"})  # one call, many times at once
    calls = [fine, fine, fine, fine, fine, Call("POST", "/generate", {"fuzz": what}), fine, fine]
    return asyncio.run(judged(change, calls))


def kind(report: fuzz_run.Report) -> str | None:
    return report.finding.kind if report.finding else None


def test_a_healthy_server_is_not_guilty():
    report = run()
    assert kind(report) is None and report.requests == 8 and report.checkpoints == 2
    assert report.neighbour_answers > 0


def test_a_server_that_ends():
    report = run(what="kill")
    assert kind(report) == "died" and len(report.finding.calls) >= 5


def test_a_scheduler_that_was_replaced(quick):
    assert kind(run(lambda fake: quick.update({2: "other", 3: "sglang::scheduler"}))) == "died"


def test_a_request_without_an_answer(monkeypatch):
    send = fuzz_judge.Client.send

    def impatient(self, call, limit_s=fuzz_judge.ANSWER_LIMIT_S):
        return send(self, call, 1.0 if call.body == {"fuzz": "hang"} else limit_s)

    monkeypatch.setattr(fuzz_judge.Client, "send", impatient)
    report = run(what="hang")
    assert kind(report) == "hang" and len(report.finding.open_calls) == 1


def test_slots_that_are_lost():
    def leak(fake: Fake) -> None:
        fake.stats = STATS | {"pool": POOL | {"available_tokens": 379}}

    def held(fake: Fake) -> None:
        fake.stats = STATS | {"tree_held_tokens": 5}

    assert kind(run(leak)) == kind(run(held)) == "pool"


def test_a_server_that_never_gets_idle():
    def busy(fake: Fake) -> None:
        fake.stats = STATS | {"requests": [{"rid": "x"}]}

    assert kind(run(busy)) == "hang"


def test_tokens_that_a_neighbour_changed():
    def change(fake: Fake) -> None:
        def other(body: dict) -> Any:
            found = Fake.right(body)
            return found | {"output_ids": [*found["output_ids"][:-1], 0]}

        fake.answer = other

    assert kind(run(change)) == "tokens"


def test_a_retracted_row_with_a_budget_may_answer_otherwise():
    def change(fake: Fake) -> None:
        def other(body: dict) -> Any:
            found = Fake.right(body)
            if body["sampling_params"]["custom_params"]["kv_budget"] and fake.asked < 1000:
                fake.asked += 1
                found["meta_info"]["num_retractions"] = 1
                found["output_ids"][-1] = 0
            return found

        fake.asked, fake.answer = 0, other

    # Beside the fuzz it is let through; on the quiet server of a checkpoint nothing retracts.
    assert run(change).finding.detail.startswith("on a quiet server")


def test_a_neighbour_that_is_refused_without_a_reason():
    def refuse(fake: Fake) -> None:
        fake.answer = lambda body: web.Response(status=500, text="no")

    assert kind(run(refuse)) == "neighbour refused"


def test_exceptions_of_a_log_and_whose_they_are():
    log = """[2026-11-29 18:39:08] Scheduler hit an exception: Traceback (most recent call last):
  File "/x/site-packages/sglang/srt/managers/scheduler.py", line 2529, in handle
    self.init(req)
  File "/y/sglang_longflow/hooks/request.py", line 68, in init
    for key in params.items()
AttributeError: 'list' object has no attribute 'items'

fine
"""
    (name,) = fuzz_judge.tracebacks(log)
    assert name.startswith("AttributeError: 'list' object") and "request.py:68 init" in name
    assert fuzz_judge.is_ours(name)
    through = "ValueError: x  [sglang/srt/a.py:1 f < sglang_longflow/hooks/inbox.py:47 g]"
    assert not fuzz_judge.is_ours(through)
    refused = "sglang_longflow.errors.BudgetError: x  [sglang_longflow/flow/fields.py:162 f]"
    assert not fuzz_judge.is_ours(refused)


def test_a_finding_is_written_as_a_replay_file(tmp_path):
    report = run(what="kill")
    replay = report.finding.write(tmp_path, "A-1")
    calls = [Call.from_json(json.loads(line)) for line in replay.read_text().splitlines()]
    assert [c.body for c in calls] == [c.body for c in report.finding.calls]
    assert "died" in (tmp_path / "A-1.txt").read_text()
