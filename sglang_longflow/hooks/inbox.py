# SPDX-License-Identifier: Apache-2.0
"""Between the processes, SGLang side: what is sent to the scheduler, and what it cannot take."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import typing
from http import HTTPStatus
from typing import Any

from sglang_longflow.core import runtime
from sglang_longflow.core.fields import (
    check_embeddings,
    check_fields,
    check_known,
    check_positions,
    check_request_bounds,
    check_sampling_bounds,
)
from sglang_longflow.errors import BudgetError
from sglang_longflow.hooks import metrics
from sglang_longflow.hooks.guard import send_abort, watching
from sglang_longflow.hooks.sglang_types import Original, Scheduler, TokenizerManager
from sglang_longflow.settings.config import config_from
from sglang_longflow.settings.resolved import resolved

logger = logging.getLogger(__name__)

#: Checked elsewhere (`core.request`), made by SGLang itself, or of types of its own.
_NOT_CHECKED = {"custom_params", "input_embeds", "input_ids", "input_text", "sampling_params"}


#: Attribute of a tokenizer manager with a budget, and of the dispatcher of its answers.
_GUARDED = "longflow_guarded"


def guard_answers(manager: TokenizerManager) -> None:
    """From now on an answer that a tokenizer manager cannot deal with does not end its process."""
    setattr(manager, _GUARDED, True)
    setattr(manager._result_dispatcher, _GUARDED, True)


def _is_guarded(owner: Any) -> bool:
    return getattr(owner, _GUARDED, False)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _fields(struct: Any) -> dict[str, Any]:
    names = (name for name in struct.__struct_fields__ if name not in _NOT_CHECKED)
    return {name: getattr(struct, name) for name in names}


def create_tokenized_object(
    original: Original, self: TokenizerManager, obj: Any, *args: Any, **kwargs: Any
) -> Any:
    """Around ``TokenizerManager._create_tokenized_object``: ValueError becomes HTTP 400."""
    if config_from(self.server_args) is None:
        return original(self, obj, *args, **kwargs)
    from sglang.srt.managers.io_struct import GenerateReqInput

    try:
        hints = _hints(self.sampling_params_class)
        given = {name: v for name, v in obj.sampling_params.items() if name not in _NOT_CHECKED}
        check_known(given, hints)
        # None stands for SGLang's default here.
        check_fields({name: v for name, v in given.items() if v is not None}, hints)
        tokenized = original(self, obj, *args, **kwargs)
        request = _fields(tokenized)
        kind: Any = type(tokenized)
        check_fields(request, _hints(kind))
        check_sampling_bounds(_fields(tokenized.sampling_params))
        check_request_bounds(request, self.model_config.vocab_size)
        if isinstance(obj, GenerateReqInput):
            _check_what_becomes_tensors(tokenized, self.model_config)
            _check_processor(tokenized.custom_logit_processor)
        return tokenized
    except BudgetError as error:
        metrics.count_refusal(error.reason, resolved(self.server_args).served_model_name)
        raise
    except (re.error, TypeError, OverflowError) as error:  # SGLang makes a 500 of them
        metrics.count_refusal("wrong_type", resolved(self.server_args).served_model_name)
        raise BudgetError(f"the request cannot be read: {error}", "wrong_type") from error


def _check_what_becomes_tensors(tokenized: Any, model_config: Any) -> None:
    from sglang.srt.managers.embed_types import PositionalEmbeds

    if tokenized.input_embeds is not None:
        dtype = str(model_config.dtype).removeprefix("torch.")
        if dtype != "bfloat16":
            raise BudgetError(
                f"input_embeds: SGLang computes with them in bfloat16, and this server in {dtype} "
                f"(operator: --dtype bfloat16)",
                "wrong_type",
            )
        check_embeddings(tokenized.input_embeds, model_config.hidden_size)
    prompt = tokenized.input_ids if tokenized.input_embeds is None else tokenized.input_embeds
    check_positions(tokenized.token_indices_to_pool, len(prompt))
    overrides = tokenized.positional_embed_overrides
    if overrides is not None and not isinstance(overrides, PositionalEmbeds):
        raise BudgetError(
            f"positional_embed_overrides={overrides!r:.60}: is taken from sglang.Engine alone",
            "wrong_type",
        )


def _check_processor(text: str | None) -> None:
    """SGLang's scheduler would end at one that it cannot load."""
    if not text:
        return
    from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

    try:
        CustomLogitProcessor.from_str(text)
    except Exception as error:  # what a pickle may raise is anything
        raise BudgetError(
            f"custom_logit_processor={text!r:.40}: cannot be loaded: {error}", "wrong_type"
        ) from error


async def one_weight_update(original: Original, self: TokenizerManager, obj: Any) -> Any:
    """Around ``TokenizerManager._wait_for_model_update_from_disk``: one after the other.

    While generation is paused SGLang does not see to that: the second takes the first one's place,
    whose caller waits for ever, and the second answer ends the HTTP process.
    """
    if config_from(self.server_args) is None:
        return await original(self, obj)
    lock = self.__dict__.setdefault("longflow_weight_update", asyncio.Lock())
    async with lock:
        return await original(self, obj)


async def pause_generation(original: Original, self: TokenizerManager, obj: Any) -> Any:
    """Around ``TokenizerManager.pause_generation``: one after the other, and ``abort`` ends.

    ``abort`` waits until nothing runs, and holds the lock that ``continue_generation`` needs. A
    scheduler that another mode has paused never gets there: it has to go on first.
    """
    if config_from(self.server_args) is None:
        return await original(self, obj)
    from sglang.srt.managers.io_struct import ContinueGenerationReqInput

    lock = self.__dict__.setdefault("longflow_pause", asyncio.Lock())
    async with lock:
        if obj.mode == "abort" and self.is_pause:
            await self._async_dispatch_to_scheduler(ContinueGenerationReqInput())
        return await original(self, obj)


def collect_metrics(original: Original, self: TokenizerManager, *args: Any, **kwargs: Any) -> Any:
    """Around ``TokenizerManager.collect_metrics``: a label that nobody declared is not counted.

    It is called for every request of every step, so the settings are not read again here.
    """
    if not _is_guarded(self):
        return original(self, *args, **kwargs)
    with watching("the metrics of a request"):
        return original(self, *args, **kwargs)


def handle_generate_request(
    original: Original, self: Scheduler, recv_req: Any, **kwargs: Any
) -> Any:
    """Around ``Scheduler.handle_generate_request``: a request that it cannot take is answered."""
    state = runtime.current()
    if state is None:
        return original(self, recv_req, **kwargs)
    try:
        return original(self, recv_req, **kwargs)
    except Exception as error:
        logger.exception("longflow: request %.200r could not be taken", recv_req.rid)
        state.counters.failed_hooks += 1
        self.waiting_queue = [req for req in self.waiting_queue if req.rid != recv_req.rid]
        message = f"the scheduler could not take the request: {type(error).__name__}: {error}"
        send_abort(self, recv_req, HTTPStatus.INTERNAL_SERVER_ERROR, message)


def dispatch(original: Original, self: Any, obj: Any) -> Any:
    """Around ``TypeBasedDispatcher.__call__``, in the scheduler's process and the HTTP process.

    What is no request for tokens is an operator's: weights, profiles, sessions. If it fails in the
    scheduler, the caller is told where SGLang has words for that, and the server goes on. So it
    does where the HTTP process cannot deal with an answer.
    """
    in_scheduler = runtime.current() is not None
    if not in_scheduler and not _is_guarded(self):
        return original(self, obj)
    try:
        return original(self, obj)
    except Exception as error:
        name = type(obj).__name__
        logger.exception("longflow: %s failed", name)
        if not in_scheduler:
            return None
        return _failed_output(name, f"{name} failed: {type(error).__name__}: {error}")


_EMPTY: dict[Any, Any] = {bool: False, int: 0, float: 0.0, str: "", list: [], dict: {}}


def _failed_output(name: str, message: str) -> Any:
    """SGLang's answer to a request of type `name` that says it failed; None if it has none."""
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
