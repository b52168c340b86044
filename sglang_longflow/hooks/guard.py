# SPDX-License-Identifier: Apache-2.0
"""The one guard around the scheduler's hooks: a failure there ends a request, never the server.

An exception that leaves a hook of the scheduler's process ends that process, and with it every
running request. So no hook is trusted with that: the manifest says for each of them what its own
failure costs (`Fails`), and `guarded` sees to it. An exception of SGLang's own function passes
through as it came.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

from sglang_longflow.core import runtime
from sglang_longflow.hooks.hook import Fails

logger = logging.getLogger(__name__)


def end_request(req: Any, problem: str) -> None:
    """Finish a request with an error 500 that says `problem`; it may run, wait or be new."""
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    state = runtime.current()
    if state is not None:
        state.counters.failed_hooks += 1
    if req.finished():
        return
    if not req.kv.holds_kv:
        # It has no slots yet: from here on it is SGLang's, a request of one token, which an empty
        # server can always admit. Its prompt stays, because SGLang may be about to prefill it.
        req.longflow_row = req.customized_info = None
        req.sampling_params.max_new_tokens, req.sampling_params.min_new_tokens = 1, 0
    if req.to_finish is None:  # what came first says why
        req.to_finish = FINISH_ABORT(
            problem, HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError"
        )


def send_abort(scheduler: Any, request: Any, status: HTTPStatus, message: str) -> dict[str, Any]:
    """Answer a request that the scheduler will not run; returns SGLang's reason for it.

    `request` is a ``Req``, or what the HTTP process sent of one.
    """
    from sglang.srt.managers.io_struct import AbortReq

    reason = {"type": "abort", "status_code": status, "message": message}
    answer = AbortReq(finished_reason=reason, rid=request.rid)
    scheduler.send_abort_output(answer, request)
    return reason


@contextlib.contextmanager
def blaming(req: Any, what: str) -> Iterator[None]:
    """If the block fails, `req` ends with an error that names `what`; nothing is raised."""
    try:
        yield
    except Exception as error:
        logger.exception("longflow: %s failed for request %.200r, which ends", what, req.rid)
        end_request(req, f"longflow: {what} failed: {type(error).__name__}: {error}")


@contextlib.contextmanager
def watching(what: str) -> Iterator[None]:
    """If the block fails, the error is logged: monitoring never ends what it monitors."""
    try:
        yield
    except Exception:
        logger.exception("longflow: %s failed", what)


class _Stock:
    """SGLang's own function, as a handler gets it: remembers what it returned or raised.

    One for all calls of a hook, because some are made for each of a thousand rows.
    """

    __slots__ = ("is_running", "original", "raised", "results")

    def __init__(self, original: Callable[..., Any] | None):
        self.original = original
        self.results: list[Any] = []
        self.raised: Exception | None = None
        self.is_running = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert self.original is not None
        try:
            result = self.original(*args, **kwargs)
        except Exception as error:
            self.raised = error
            raise
        self.results.append(result)
        return result


def guarded(
    handler: Callable[..., Any], kind: str, fails: Fails, blamed: int | None
) -> Callable[..., Any]:
    """`handler` with its failures contained.

    Parameters
    ----------
    handler : callable
        As SGLang's HookRegistry takes it.
    kind : str
        "before", "after" or "around".
    fails : Fails
        START and ANSWER are raised. A hook of many ROWS uses `blaming` for each of them,
        and a GUARD does this itself.
    blamed : int, optional
        For REQUEST: the place of the request among the target's arguments.
    """
    if fails in (Fails.START, Fails.ANSWER, Fails.ROWS, Fails.GUARD):
        return handler
    name = f"{handler.__module__.rpartition('.')[2]}:{handler.__name__}"

    def contain(args: tuple[Any, ...], error: Exception) -> None:
        if fails is Fails.REQUEST:
            assert blamed is not None
            with blaming(args[blamed], name):
                raise error
        else:
            logger.error("longflow: %s failed", name, exc_info=error)

    if kind != "around":

        @functools.wraps(handler)
        def beside(*args: Any, **kwargs: Any) -> Any:
            try:
                return handler(*args, **kwargs)
            except Exception as error:
                contain(args[1:] if kind == "after" else args, error)
                return None  # SGLang's own result or arguments stand

        return beside

    stock = _Stock(None)

    @functools.wraps(handler)
    def around(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal stock
        if stock.original is not original or stock.is_running:
            stock = _Stock(original)
        mine = stock
        mine.results, mine.raised, mine.is_running = [], None, True
        try:
            return handler(mine, *args, **kwargs)
        except Exception as error:
            if error is mine.raised:
                raise
            contain(args, error)
            return mine.results[-1] if mine.results else original(*args, **kwargs)
        finally:
            mine.is_running = False

    return around
