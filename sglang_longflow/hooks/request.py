# SPDX-License-Identifier: Apache-2.0
"""Request, SGLang's side: validation in the HTTP process, the row in the scheduler's."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from sglang_longflow.core import runtime
from sglang_longflow.core.admission import prefill_slots, total_tokens
from sglang_longflow.core.contracts import KVRow
from sglang_longflow.core.fields import check_fields
from sglang_longflow.core.request import (
    INACTIVE,
    asks_for_budget,
    check_context,
    check_fits,
    check_input_ids,
    check_media,
    resolve_budget,
    stop_ids_in_vocabulary,
)
from sglang_longflow.core.rows import ResidentRow
from sglang_longflow.errors import BudgetError
from sglang_longflow.hooks import metrics
from sglang_longflow.hooks.guard import send_abort
from sglang_longflow.hooks.report import CUSTOMIZED_INFO_KEY, LatestReport
from sglang_longflow.hooks.sglang_types import Original, Req, Scheduler, TokenizerManager
from sglang_longflow.settings.config import config_from
from sglang_longflow.settings.resolved import resolved

logger = logging.getLogger(__name__)


def row_of(req: Req) -> KVRow | None:
    """The row of a request, None if the plugin does not manage it."""
    return getattr(req, "longflow_row", None)


def bounded_row(req: Req) -> KVRow | None:
    """The row of a request that has a budget; None for full KV and unmanaged requests."""
    row = row_of(req)
    return None if row is None or row.budget.is_full else row


def longest(req: Req) -> int:
    """Tokens that a request can reach."""
    return total_tokens(len(req.origin_input_ids), req.sampling_params.max_new_tokens)


def resident_row(req: Req) -> ResidentRow:
    """A running request as the accounting of `core` sees it."""
    row = bounded_row(req)
    if row is None:
        return ResidentRow(None, req.kv.kv_committed_len)
    return ResidentRow(
        budget=row.budget,
        kv_len=req.kv.kv_committed_len,
        allocated_slots=req.kv.kv_allocated_len,
        total_tokens=longest(req),
        tree_slots=req.kv.cache_protected_len,
        owned=row.owned,
        has_pick=row.prompt_keep is not None,
        lock=req.lock,
        decode_steps=row.decode_steps,
    )


def _media_of(obj: Any) -> list[str]:
    """Fields of a request that have images, video or audio."""
    if not obj.contains_mm_input():
        return []
    from sglang.srt.multimodal.mm_utils import has_valid_data

    names = ("image_data", "video_data", "audio_data")
    return [name for name in names if has_valid_data(getattr(obj, name))]


def validate_one_request(self: TokenizerManager, obj: Any, input_ids: Any) -> None:
    """Before ``TokenizerManager._validate_one_request``: ValueError becomes HTTP 400."""
    config = config_from(self.server_args)
    sampling_params = obj.sampling_params
    if config is None:
        params = sampling_params.get("custom_params") if isinstance(sampling_params, dict) else None
        if isinstance(params, dict) and asks_for_budget(params):
            raise BudgetError(INACTIVE, "inactive")
        return
    try:
        if not isinstance(sampling_params, dict):
            raise BudgetError(
                f"sampling_params={sampling_params!r:.60}: expected an object, or for several "
                f"prompts a list of one object for each",
                "wrong_type",
            )
        if (tokens := sampling_params.get("max_new_tokens")) is not None:
            # SGLang adds it to the prompt's length before anything else looks at it.
            check_fields({"max_new_tokens": tokens}, {"max_new_tokens": int})
        budget = resolve_budget(sampling_params.get("custom_params"), config)
        check_context(budget, self.model_config.context_len)
        if not budget.is_full and getattr(obj, "session_params", None) is not None:
            raise BudgetError(
                f"kv_budget={budget.tokens}: sessions are not supported with a KV budget; "
                f"send kv_budget 0 where this server allows full KV",
                "session",
            )
        check_media(_media_of(obj), self.model_config.is_multimodal)
        vocab_size = self.model_config.vocab_size
        check_input_ids(input_ids, vocab_size)
        kept = stop_ids_in_vocabulary(sampling_params.get("stop_token_ids"), vocab_size)
        if kept is not None:
            obj.sampling_params = {**sampling_params, "stop_token_ids": kept}
    except BudgetError as error:
        metrics.count_refusal(error.reason, resolved(self.server_args).served_model_name)
        raise


def init_req_max_new_tokens(original: Original, self: Scheduler, req: Req) -> Any:
    """Around ``Scheduler.init_req_max_new_tokens``: the first call with the request built.

    SGLang bounds prompt + max_new_tokens by the pool; a budgeted request is bounded by the
    context alone, because its row never outgrows the budget.
    """
    state = runtime.current()
    if state is None:
        return original(self, req)
    params = req.sampling_params
    wanted, wanted_least = params.max_new_tokens, params.min_new_tokens
    original(self, req)
    if row_of(req) is not None:
        return
    custom_params = params.custom_params
    if isinstance(custom_params, dict):  # SGLang adds the request for logit processors
        custom_params = {key: v for key, v in custom_params.items() if key != "__req__"}
    try:
        budget = resolve_budget(custom_params, state.config)
        if not budget.is_full:
            _extend_to_context(self, req, wanted)
            params.min_new_tokens = min(wanted_least, params.max_new_tokens)
            check_fits(
                budget,
                len(req.origin_input_ids),
                params.max_new_tokens,
                self.max_total_num_tokens,
            )
    except BudgetError as error:
        # The HTTP process could not check this: only the scheduler knows the pool.
        metrics.count_refusal(error.reason, resolved(self.server_args).served_model_name)
        if req.to_finish is None:
            req.set_finish_with_abort(str(error))
            params.max_new_tokens = min(params.max_new_tokens, 1)
        return
    req.longflow_row = KVRow(budget)
    req.customized_info = {CUSTOMIZED_INFO_KEY: LatestReport(req)}


def add_request_to_queue(
    original: Original, self: Scheduler, req: Req, is_retracted: bool = False
) -> Any:
    """Around ``Scheduler._add_request_to_queue``, through which new and retracted requests pass.

    SGLang counts on it that whatever waits can be admitted to an empty server. A row with a budget
    may have outgrown the pool: retracted, it would have to be prefilled from all of its tokens.
    """
    row = bounded_row(req)
    tokens = len(req.origin_input_ids) + len(req.output_ids)
    if row is None or not req.is_retracted or prefill_slots(tokens) <= self.max_total_num_tokens:
        return original(self, req, is_retracted)
    metrics.count_refusal("outgrew_pool", resolved(self.server_args).served_model_name)
    message = (
        f"kv_budget={row.budget.tokens}: the request was retracted with {tokens} tokens, more than "
        f"this server's pool of {self.max_total_num_tokens} can prefill again; it ends with what "
        f"it had. pause_generation with mode in_place keeps its row"
    )
    logger.warning("longflow: request %.200r: %s", req.rid, message)
    reason = send_abort(self, req, HTTPStatus.SERVICE_UNAVAILABLE, message)
    req.time_stats.trace_ctx.abort(abort_info=reason)
    self._release_aborted_request(req)


def _extend_to_context(scheduler: Scheduler, req: Req, wanted: int | None) -> None:
    room = scheduler.model_config.context_len - len(req.origin_input_ids) - 2
    limit = scheduler.max_new_tokens_limit
    if limit is not None and limit > 0:
        room = min(room, limit)
    tokens = max(0, room if wanted is None else min(wanted, room))
    req.sampling_params.max_new_tokens = max(tokens, req.sampling_params.max_new_tokens)
