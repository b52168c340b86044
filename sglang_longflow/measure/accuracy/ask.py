# SPDX-License-Identifier: Apache-2.0
"""Sends problems to a server, many at once, and judges what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from sglang_longflow.client.http import NoResponse, ask
from sglang_longflow.errors import EvalError
from sglang_longflow.measure.accuracy.records import Record
from sglang_longflow.measure.accuracy.sampling import Sampling
from sglang_longflow.measure.accuracy.tasks import Question, Task, is_finished
from sglang_longflow.measure.variants import FULL, Variant, WorkItem


def post(url: str, body: dict[str, Any]) -> Any:
    """The JSON (or text) that the server answers, however long that takes while it lives.

    Raises
    ------
    EvalError
        It answers with an error, or not at all.
    """
    try:
        response = ask(url, body, timeout_s=None)
    except NoResponse as error:
        raise EvalError(f"{url}: {error}") from None
    if not response.is_success:
        raise EvalError(f"{url}: HTTP {response.status_code}: {response.text[:300]}")
    return response.json() if response.text.startswith("{") else response.text


def ask_one(
    url: str, variant: Variant, budget: int, question: Question, drawn: dict[str, Any]
) -> dict[str, Any]:
    """What /generate answers to one question; `drawn` is of `Sampling.parameters`."""
    params: dict[str, Any] = {"kv_budget": budget}
    if variant.policy != FULL:
        params["kv_policy"] = variant.policy
    sampling = {
        **drawn,
        "max_new_tokens": question.max_new_tokens,
        "custom_params": params,
    }
    body = {**question.prompt, "sampling_params": sampling}
    answer: dict[str, Any] = post(f"{url}/generate", body)
    return answer


def ask_all(
    url: str,
    task: Task,
    parts: Sequence[WorkItem],
    sampling: Sampling,
    concurrency: int,
    take: Callable[[Record], None],
) -> None:
    """Ask what is wanted at each point, `concurrency` requests at once, one point after the other.

    The next one begins while the last chains of one are still running: the server is kept busy.
    `take` gets each record as it comes, in this thread.
    """
    jobs = [
        (variant, budget, number, sample)
        for variant, budget, wanted in parts
        for number, sample in wanted
    ]
    pool = ThreadPoolExecutor(concurrency)
    try:
        futures = {
            pool.submit(
                ask_one,
                *(url, variant, budget, task.questions[number]),
                sampling.parameters(number, sample),
            ): (variant, budget, number, sample)
            for variant, budget, number, sample in jobs
        }
        for future in as_completed(futures):
            take(record_of(task, *futures[future], future.result()))
    finally:
        # After an error or a signal nobody waits for the other answers: the server ends them.
        pool.shutdown(wait=False, cancel_futures=True)


def record_of(
    task: Task, variant: Variant, budget: int, number: int, sample: int, answer: dict[str, Any]
) -> Record:
    """What is kept of an answer."""
    question, meta = task.questions[number], answer["meta_info"]
    found, right = task.judge(question, answer)
    return Record(
        variant=variant.name,
        budget=budget,
        number=number,
        kind=question.kind,
        right=right,
        finished=is_finished(answer),
        prompt_tokens=meta["prompt_tokens"],
        generated_tokens=meta["completion_tokens"],
        resident_tokens=meta["kv_resident_tokens"],
        overwritten_tokens=meta["kv_overwritten_tokens"],
        answer=found,
        sample=sample,
    )
