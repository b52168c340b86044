"""Stage 1, SGLang side: validation in the HTTP process, the row in the scheduler's."""

from __future__ import annotations

from sglang_longflow import runtime
from sglang_longflow.config import config_from
from sglang_longflow.contracts import KVRow
from sglang_longflow.errors import BudgetError
from sglang_longflow.flow.request import INACTIVE, asks_for_budget, check_fits, resolve_budget
from sglang_longflow.hooks import metrics
from sglang_longflow.hooks.report import CUSTOMIZED_INFO_KEY, LatestReport


def row_of(req) -> KVRow | None:
    """The row of a request, None where the plugin does not manage it."""
    return getattr(req, "longflow_row", None)


def bounded_row(req) -> KVRow | None:
    """The row of a request that has a budget; None for full KV and unmanaged requests."""
    row = row_of(req)
    return None if row is None or row.budget.is_full else row


def validate_one_request(self, obj, input_ids) -> None:
    """Before ``TokenizerManager._validate_one_request``: ValueError becomes HTTP 400."""
    sampling_params = obj.sampling_params if isinstance(obj.sampling_params, dict) else {}
    params = sampling_params.get("custom_params")
    config = config_from(self.server_args)
    if not isinstance(params, dict | None):
        return  # SGLang's own check names it
    if config is None:
        if asks_for_budget(params):
            raise BudgetError(INACTIVE, "inactive")
        return
    try:
        budget = resolve_budget(params, config)
        if not budget.is_full and getattr(obj, "session_params", None) is not None:
            raise BudgetError(
                f"kv_budget={budget.tokens}: sessions are not supported with a KV budget; "
                f"send kv_budget 0 where this server allows full KV",
                "session",
            )
    except BudgetError as error:
        metrics.count_refusal(error.reason)
        raise


def init_req_max_new_tokens(original, self, req) -> None:
    """Around ``Scheduler.init_req_max_new_tokens``: the first call with the request built.

    SGLang bounds prompt + max_new_tokens by the pool; a budgeted request is bounded by the
    context alone, because its row never outgrows the budget.
    """
    state = runtime.current()
    if state is None:
        return original(self, req)
    wanted = req.sampling_params.max_new_tokens
    original(self, req)
    if row_of(req) is not None:
        return
    params = {
        key: value
        for key, value in (req.sampling_params.custom_params or {}).items()
        if key != "__req__"
    }
    try:
        budget = resolve_budget(params, state.config)
        if not budget.is_full:
            _extend_to_context(self, req, wanted)
            check_fits(
                budget,
                len(req.origin_input_ids),
                req.sampling_params.max_new_tokens,
                self.max_total_num_tokens,
            )
    except BudgetError as error:
        # A request that the HTTP process could not judge: the pool is known here alone.
        metrics.count_refusal(error.reason)
        if req.to_finish is None:
            req.set_finish_with_abort(str(error))
            req.sampling_params.max_new_tokens = min(req.sampling_params.max_new_tokens, 1)
        return
    req.longflow_row = KVRow(budget)
    req.customized_info = {CUSTOMIZED_INFO_KEY: LatestReport(req)}


def _extend_to_context(scheduler, req, wanted: int | None) -> None:
    room = scheduler.model_config.context_len - len(req.origin_input_ids) - 2
    limit = scheduler.max_new_tokens_limit
    if limit is not None and limit > 0:
        room = min(room, limit)
    tokens = max(0, room if wanted is None else min(wanted, room))
    req.sampling_params.max_new_tokens = max(tokens, req.sampling_params.max_new_tokens)
