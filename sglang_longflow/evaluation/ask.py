"""Sends problems to a server, many at once, and judges what comes back."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from sglang_longflow.errors import LongFlowError
from sglang_longflow.evaluation.records import Record
from sglang_longflow.evaluation.variants import FULL, Variant
from sglang_longflow.reasoner import Problem, answer_of
from sglang_longflow.reasoner.vocabulary import decode, encode

TIMEOUT_S = 3600.0
#: A chain may go on for this share of the reference's length before it is given up.
SLACK = 1.25
# Requests go to this machine: a proxy from the environment has no business with them.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class EvalError(LongFlowError):
    """The server refused a request, or went away."""

    exit_status = 1


def post(url: str, body: dict[str, Any]) -> Any:
    """The JSON (or text) that the server answers.

    Raises
    ------
    EvalError
        It answers with an error, or not at all.
    """
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with _OPENER.open(request, timeout=TIMEOUT_S) as response:
            text = response.read().decode()
    except urllib.error.HTTPError as error:
        reason = error.read().decode(errors="replace")[:300]
        raise EvalError(f"{url}: HTTP {error.code}: {reason}") from None
    except OSError as error:
        raise EvalError(f"{url}: {error}") from None
    return json.loads(text) if text.startswith("{") else text


def ask_one(url: str, variant: Variant, budget: int, number: int, problem: Problem) -> Record:
    """One problem, greedily."""
    params: dict[str, Any] = {"kv_budget": budget}
    if variant.policy != FULL:
        params["kv_policy"] = variant.policy
    limit = int(problem.chain_tokens * SLACK) + 32
    answer = post(
        f"{url}/generate",
        {
            "input_ids": encode(problem.prompt),
            "sampling_params": {
                "temperature": 0,
                "max_new_tokens": limit,
                "custom_params": params,
            },
        },
    )
    meta = answer["meta_info"]
    found = answer_of(decode(answer["output_ids"]))
    finished = meta["finish_reason"]["type"] == "stop"
    return Record(
        variant=variant.name,
        budget=budget,
        number=number,
        kind=problem.kind,
        right=finished and found == problem.answer,
        finished=finished,
        prompt_tokens=meta["prompt_tokens"],
        generated_tokens=meta["completion_tokens"],
        resident_tokens=meta["kv_resident_tokens"],
        overwritten_tokens=meta["kv_overwritten_tokens"],
        answer=found,
    )


def ask_all(
    url: str,
    variant: Variant,
    budget: int,
    problems: Iterable[tuple[int, Problem]],
    concurrency: int,
    take: Callable[[Record], None],
) -> None:
    """Ask (number, problem) pairs; `take` gets each record as it comes, in this thread."""
    with ThreadPoolExecutor(concurrency) as pool:
        futures = [pool.submit(ask_one, url, variant, budget, *pair) for pair in problems]
        try:
            for future in as_completed(futures):
                take(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
