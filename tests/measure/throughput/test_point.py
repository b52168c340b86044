# SPDX-License-Identifier: Apache-2.0
"""The work of a bench and its numbers, without a server."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from types import SimpleNamespace

import aiohttp
import pytest

from sglang_longflow.errors import BenchError
from sglang_longflow.measure.throughput import point, streams
from sglang_longflow.measure.throughput.point import Work, check, summarise
from sglang_longflow.measure.throughput.streams import (
    Stream,
    gaps,
    latencies,
    percentile,
    tokens_at,
)

WORK = Work(requests=2, concurrency=0, input=5, output=9, vocabulary=100, seed=3)


def answered(sent: float, times: list[tuple[float, int]], **meta) -> Stream:
    return Stream(sent, times, {"finish_reason": {"type": "length"}, **meta}, finished=True)


def test_percentiles():
    """Interpolated between neighbours, as numpy and `statistics` do."""
    values = [float(n) for n in range(1, 101)]
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    assert percentile(values, 0.5) == pytest.approx(50.5) == cuts[49]
    assert percentile(values, 0.99) == pytest.approx(99.01) == cuts[98]
    assert percentile([3.0, 1.0], 0.5) == 2.0, "the median of two is their mean, in any order"
    assert percentile([7.0], 0.99) == 7 and percentile([], 0.5) is None


def test_gaps_are_seconds_and_tokens_between_messages():
    stream = answered(0, [(1.0, 1), (2.0, 5), (2.5, 5), (4.0, 9)])
    assert list(gaps([stream])) == [(1.0, 4), (1.5, 4)]
    assert list(gaps([stream], start=3.0)) == [(1.5, 4)]
    assert latencies([stream]) == [0.25, 0.375]
    assert tokens_at(stream, 2.2) == 5 and tokens_at(stream, 0.5) == 0


def test_every_point_has_the_same_prompts():
    first, second = WORK.prompts(), WORK.prompts()
    assert first == second and len(first) == 2
    assert first[0] != first[1] and WORK.warm_up_prompt() not in first
    assert all(len(p) == 5 and all(3 <= token < 100 for token in p) for p in first)
    other = Work(**{**WORK.__dict__, "seed": 4})
    assert other.prompts() != first


def test_summary():
    pair = [
        answered(10.0, [(11.0, 1), (13.0, 9)], kv_resident_tokens=8, num_retractions=0),
        answered(10.5, [(12.5, 1), (13.5, 5), (14.0, 9)], kv_resident_tokens=6, num_retractions=2),
    ]
    found = summarise("longflow", 8, WORK, pair, 2)
    assert found.wall_s == 4.0  # from the first request sent to the last token
    assert found.output_tokens_per_s == 18 / 4
    assert (found.first_token_s_mean, found.first_token_s_p50) == (1.5, 1.5)
    assert found.first_token_s_p99 == 1.99  # between 1 and 2
    assert found.inter_token_ms_mean == pytest.approx(1e3 * (2 + 1 + 0.5) / 16, abs=1e-3)
    assert found.inter_token_ms_p99 == 250.0
    assert (found.running_peak, found.retractions) == (2, 2)
    assert found.reached_share == 0.5 and found.resident_tokens_mean == 7
    assert found.is_about_its_budget and found.concurrency == 2


def test_full_kv_has_no_share_and_stock_no_rows():
    pair = [answered(0.0, [(1.0, 1), (2.0, 9)]), answered(0.0, [(1.0, 1), (2.0, 9)])]
    found = summarise("stock", 0, WORK, pair, None)
    assert found.reached_share is None and found.resident_tokens_mean is None
    assert found.running_peak is None and found.is_about_its_budget
    # No answer of the server saw one running: not measured, and no peak of 0.
    assert summarise("stock", 0, WORK, pair, 0).running_peak is None


@pytest.mark.parametrize(("reached", "fine"), [(1, False), (2, True), (10, True), (0, False)])
def test_too_few_requests_at_the_budget_prove_nothing(reached, fine):
    rows = [
        answered(0.0, [(1.0, 1), (2.0, 9)], kv_resident_tokens=8 if i < reached else 7)
        for i in range(10)
    ]
    assert summarise("longflow", 8, WORK, rows, 1).is_about_its_budget is fine


def test_messages_of_a_stream():
    stream = Stream()
    streams._take({"meta_info": {"completion_tokens": 1, "finish_reason": None}}, stream)
    assert not stream.finished and stream.messages[0][1] == 1
    streams._take({"error": {"message": "kv_budget=5: below 34"}}, stream)
    assert stream.problem == "kv_budget=5: below 34"


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (Stream(problem="HTTP 400: no"), ("request 2 of 2: HTTP 400: no",)),
        (answered(0, [(1.0, 4)], kv_budget=8), ("4 tokens instead of output_tokens=9",)),
        (answered(0, [(1.0, 9)]), ("did not apply kv_budget=8",)),
        (answered(0, [(1.0, 9)], kv_budget=4), ("did not apply kv_budget=8",)),
        (
            answered(0, [(1.0, 2)], finish_reason={"type": "abort", "message": "why"}),
            ("request 2 of 2: why",),
        ),
        (Stream(), ("0 tokens instead of output_tokens=9",)),
    ],
)
def test_work_that_was_not_done_is_an_error(second, words):
    pair = [answered(0, [(1.0, 9)], kv_budget=8), second]
    with pytest.raises(BenchError) as caught:
        check(pair, WORK, "longflow, budget 8", {"kv_budget": 8})
    assert str(caught.value).startswith("longflow, budget 8, ")
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_request_behind_the_others_is_named_first():
    """Those that were broken off because of it are not the reason."""
    with pytest.raises(BenchError, match="request 2 of 2: HTTP 500"):
        check([Stream(), Stream(problem="HTTP 500: it")], WORK, "x", {})


def test_body():
    body = point.body_of([1, 2], 9, {"kv_budget": 8})
    assert body["sampling_params"]["ignore_eos"] is True
    assert body["sampling_params"]["max_new_tokens"] == 9
    assert body["sampling_params"]["custom_params"] == {"kv_budget": 8}
    assert "custom_params" not in point.body_of([1], 9, {})["sampling_params"]


class Answers:
    """A session that gives what is next of `answers`: an error, a status, or loads."""

    def __init__(self, *answers):
        self.answers = list(answers)

    @contextlib.asynccontextmanager
    async def get(self, url: str):
        answer = self.answers.pop(0) if self.answers else asyncio.CancelledError()
        if isinstance(answer, BaseException):
            raise answer
        status, body = (200, answer) if isinstance(answer, dict) else (answer, {})

        async def json():
            return body

        yield SimpleNamespace(status=status, json=json)


def loads(*running: int) -> dict:
    return {"loads": [{"num_running_reqs": number} for number in running]}


def test_a_look_that_fails_is_no_sample(monkeypatch):
    monkeypatch.setattr(point, "POLL_INTERVAL_S", 0)
    refused, late = aiohttp.ClientConnectionError("no"), TimeoutError("late")
    peaks: list[int] = []
    session = Answers(loads(2, 1), refused, 503, late, loads(7))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(point._watch(session, "http://x", peaks))
    assert peaks == [3, 7]


@pytest.mark.parametrize("answer", [404, {"other": 1}])
def test_a_server_that_does_not_tell_its_load_is_not_asked_again(answer):
    session, peaks = Answers(answer, loads(7)), []
    asyncio.run(point._watch(session, "http://x", peaks))
    assert peaks == [] and len(session.answers) == 1


def test_a_budget_that_the_server_refuses_is_told_before_the_first_point(monkeypatch):
    asked = []
    aborted = {"finish_reason": {"type": "abort", "message": "kv_budget=900: over the pool"}}

    async def answer(session, url, body, stream):
        params = body["sampling_params"]["custom_params"]
        asked.append((params["kv_budget"], body["sampling_params"]["max_new_tokens"]))
        if params["kv_budget"] == 0:
            stream.problem = "kv_budget=0: full KV is not allowed on this server"
        if params["kv_budget"] == 900:
            stream.meta = aborted

    monkeypatch.setattr(point, "ask", answer)
    points = [(f"budget {n}", {"kv_budget": n}) for n in (48, 0, 900)]
    point.require_accepted("http://x", [3], points[:1], None)
    assert asked == [(48, 1)]
    for wrong, words in ((points[:2], "budget 0: kv_budget=0: full KV"), (points[2:], "over the")):
        with pytest.raises(BenchError, match=words):
            point.require_accepted("http://x", [3], wrong, None)
