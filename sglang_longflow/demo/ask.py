# SPDX-License-Identifier: Apache-2.0
"""One phase of the demo: all questions at once, and a look at the server from time to time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from sglang_longflow.client.http import NoResponse, ask, event_of, lines, opened, problem_of
from sglang_longflow.demo.phase import Answer, DemoError, Phase, Question
from sglang_longflow.errors import WatchError
from sglang_longflow.monitor.client import fetch_stats, state_text

POLL_INTERVAL_S = 0.2
LOOK_TIMEOUT_S = 8.0
#: A server that neither sends a token nor answers a look for so long will not do so again. One that
#: is busy with a long step still answers looks; SGLang itself ends one that hangs in a step.
SILENCE_S = 120.0

#: Gets the phase, the requests that run, and a note if the stats could not be read.
Show = Callable[[Phase, int, str], None]


def _ask(url: str, answer: Answer, parameters: dict[str, Any], start: float) -> None:
    """Stream one request into `answer`; each runs in a thread."""
    body = {**answer.question.prompt, "sampling_params": parameters, "stream": True}
    try:
        # No limit: the connection ends with the server, and a slow machine may take any time.
        with opened(f"{url}/generate", body, timeout_s=None) as response:
            if not response.is_success:
                response.read()
                answer.problem = f"HTTP {response.status_code}: {response.text[:300]}"
                return
            for event in filter(None, map(event_of, lines(response))):
                if problem := problem_of(event):
                    answer.problem = problem
                    return
                answer.take(event["text"], event["meta_info"], time.monotonic() - start)
    except NoResponse as error:
        answer.problem = str(error)
    except (ValueError, KeyError) as error:
        answer.problem = f"{type(error).__name__}: {error}"


def run_phase(
    url: str, questions: list[Question], budget: int, parameters: dict[str, Any], show: Show
) -> Phase:
    """Send every question at once and watch the server until all are answered.

    A look that fails is no sample. A server that has ended ends the requests' connections.

    Raises
    ------
    DemoError
        A request was not answered, or nothing came from the server for `SILENCE_S`.
    """
    phase = Phase(budget, [Answer(question) for question in questions])
    parameters = {**parameters, "temperature": 0, "custom_params": {"kv_budget": budget}}
    start = heard = time.monotonic()
    threads = [
        threading.Thread(target=_ask, args=(url, answer, parameters, start), daemon=True)
        for answer in phase.answers
    ]
    for thread in threads:
        thread.start()
    running = tokens = 0
    while any(thread.is_alive() for thread in threads):
        try:
            stats = fetch_stats(url, timeout_s=LOOK_TIMEOUT_S, max_age_s=0)
        except WatchError:
            note = "the server is too busy to say what it does"
        else:
            heard = time.monotonic()
            running, note = phase.observe(stats), state_text(stats)
        if phase.generated_tokens > tokens:
            heard, tokens = time.monotonic(), phase.generated_tokens
        elif time.monotonic() - heard > SILENCE_S:
            raise DemoError(f"{phase.name}: the server has said nothing for {SILENCE_S:.0f} s")
        show(phase, running, note)
        time.sleep(POLL_INTERVAL_S)
    phase.wall_s = time.monotonic() - start
    for number, answer in enumerate(phase.answers, 1):
        if answer.problem:
            raise DemoError(f"{phase.name}, request {number}: {answer.problem}")
    show(phase, 0, "")
    return phase


def flush_cache(url: str) -> None:
    """No phase profits from prompts that the other left in the prefix cache.

    Raises
    ------
    DemoError
        Requests still run after ten minutes; they have all been answered.
    """
    try:
        # Waits, because the last rows may not be free yet.
        response = ask(f"{url}/flush_cache?timeout=600", {}, timeout_s=None)
    except NoResponse as error:
        raise DemoError(f"{url}/flush_cache: {error}") from None
    if not response.is_success:
        reason = f"HTTP {response.status_code}: {response.text[:300]}"
        raise DemoError(f"{url}/flush_cache: {reason}")
