"""Between the processes, SGLang side: what is sent to the scheduler, and what it cannot take."""

from __future__ import annotations

import functools
import logging
import re
import typing
from http import HTTPStatus
from typing import Any

from sglang_longflow import runtime
from sglang_longflow.config import config_from
from sglang_longflow.errors import BudgetError
from sglang_longflow.flow.fields import (
    check_embeddings,
    check_fields,
    check_known,
    check_request_bounds,
    check_sampling_bounds,
)
from sglang_longflow.hooks import metrics

logger = logging.getLogger(__name__)

#: Checked elsewhere (`flow.request`), made by SGLang itself, or of types of its own.
_NOT_CHECKED = {"custom_params", "input_embeds", "input_ids", "input_text", "sampling_params"}


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _fields(struct: Any) -> dict[str, Any]:
    names = (name for name in struct.__struct_fields__ if name not in _NOT_CHECKED)
    return {name: getattr(struct, name) for name in names}


def create_tokenized_object(original, self, obj, *args, **kwargs):
    """Around ``TokenizerManager._create_tokenized_object``: ValueError becomes HTTP 400."""
    if config_from(self.server_args) is None:
        return original(self, obj, *args, **kwargs)
    try:
        hints = _hints(self.sampling_params_class)
        given = {name: v for name, v in obj.sampling_params.items() if name not in _NOT_CHECKED}
        check_known(given, hints)
        # None stands for SGLang's default here.
        check_fields({name: v for name, v in given.items() if v is not None}, hints)
        tokenized = original(self, obj, *args, **kwargs)
        request = _fields(tokenized)
        check_fields(request, _hints(type(tokenized)))
        check_sampling_bounds(_fields(tokenized.sampling_params))
        check_request_bounds(request, self.model_config.vocab_size)
        check_embeddings(getattr(tokenized, "input_embeds", None), self.model_config.hidden_size)
        return tokenized
    except BudgetError as error:
        metrics.count_refusal(error.reason)
        raise
    except (re.error, TypeError, OverflowError) as error:  # SGLang makes a 500 of them
        metrics.count_refusal("wrong_type")
        raise BudgetError(f"the request cannot be read: {error}", "wrong_type") from error


def handle_generate_request(original, self, recv_req) -> None:
    """Around ``Scheduler.handle_generate_request``: a request that it cannot take is answered."""
    if runtime.current() is None:
        return original(self, recv_req)
    try:
        return original(self, recv_req)
    except Exception as error:
        logger.exception("longflow: request %s could not be taken", recv_req.rid)
        runtime.current().counters.failed_hooks += 1
        self.waiting_queue = [req for req in self.waiting_queue if req.rid != recv_req.rid]
        self.ipc_channels.send_to_tokenizer.send_output(_abort(recv_req.rid, error), recv_req)


def _abort(rid: str, error: Exception) -> Any:
    from sglang.srt.managers.io_struct import AbortReq

    reason = {
        "type": "abort",
        "status_code": HTTPStatus.INTERNAL_SERVER_ERROR,
        "message": f"the scheduler could not take the request: {type(error).__name__}: {error}",
    }
    return AbortReq(finished_reason=reason, rid=rid)


def dispatch(original, self, obj) -> Any:
    """Around ``TypeBasedDispatcher.__call__``, in the scheduler's process.

    What is no request for tokens is an operator's: weights, profiles, sessions. If it fails, the
    caller is told where SGLang has words for that, and the server goes on.
    """
    if runtime.current() is None:
        return original(self, obj)
    try:
        return original(self, obj)
    except Exception as error:
        name = type(obj).__name__
        logger.exception("longflow: %s failed in the scheduler", name)
        return _failed_output(name, f"{name} failed: {type(error).__name__}: {error}")


_EMPTY: dict[Any, Any] = {bool: False, int: 0, float: 0.0, str: "", list: [], dict: {}}


def _failed_output(name: str, message: str) -> Any:
    """SGLang's answer to a request of type `name` that says it failed; None where it has none."""
    from sglang.srt.managers import io_struct

    base = name.removesuffix("Input").removesuffix("Req")
    kind = getattr(io_struct, f"{base}ReqOutput", None)
    if kind is None:
        return None
    values: dict[str, Any] = {}
    for field, hint in _hints(kind).items():
        if field in ("rid", "http_worker_ipc"):
            continue
        if field in ("message", "error_message", "error"):
            values[field] = message
        else:
            values[field] = _EMPTY.get(typing.get_origin(hint) or hint)
    return kind(
        **{field: value for field, value in values.items() if field in kind.__struct_fields__}
    )
