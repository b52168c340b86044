# SPDX-License-Identifier: Apache-2.0
"""Release, SGLang's side: the row's numbers on their way to meta_info and OpenAI metadata."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from sglang_longflow.core.fields import check_call, check_samples
from sglang_longflow.core.http_budget import apply_headers
from sglang_longflow.core.report import report
from sglang_longflow.hooks import inbox
from sglang_longflow.hooks.sglang_types import Original, Req, TokenizerManager
from sglang_longflow.settings.config import config_from

logger = logging.getLogger(__name__)

CUSTOMIZED_INFO_KEY = "longflow"


class LatestReport(list[Any]):
    """Stands in ``Req.customized_info`` for a list with one entry a token.

    SGLang slices that list by the tokens it is about to send and appends the slice to the
    response; with ``--incremental-streaming-output`` it then cuts what went out before, by tokens
    again. So a slice of this one is as long as SGLang expects: the report of now, at its end.
    """

    def __init__(self, req: Req):
        super().__init__()
        self._req = req

    def __getitem__(self, index: Any) -> Any:  # a slice, as SGLang takes
        try:
            latest = _latest(self._req)
        except Exception:  # in the scheduler's process, and only a report
            logger.exception("longflow: no report of request %s", self._req.rid)
            latest = None
        return [None] * (index.stop - index.start - 1) + [latest]


def _latest(req: Req) -> dict[str, Any]:
    tokens = len(req.output_ids_through_stop)
    row = req.longflow_row
    assert row is not None  # a request has a report from its row on
    return asdict(report(row, len(req.origin_input_ids), tokens))


def _spread(meta_info: dict[str, Any]) -> None:
    reports = meta_info.pop(CUSTOMIZED_INFO_KEY, None)
    latest = next((entry for entry in reversed(reports or []) if entry), None)
    if latest:
        meta_info.update(latest)


def _check_size(obj: Any, *, over_http: bool) -> None:
    """How many requests a call becomes; `sglang.Engine` may ask for as many as it likes."""
    given = obj.sampling_params
    samples = 1
    for sampling in given if isinstance(given, list) else [given]:
        if isinstance(sampling, dict) and "n" in sampling:
            check_samples(sampling["n"])
            samples = max(samples, sampling["n"])
    if over_http:
        prompts = next((p for p in (obj.text, obj.input_ids) if isinstance(p, list) and p), [0])
        several = not isinstance(prompts[0], int)  # one prompt is a list of token ids
        check_call(len(prompts) if several else 1, samples)


async def generate_request(
    original: Original, self: TokenizerManager, obj: Any, request: Any = None
) -> AsyncIterator[Any]:
    """Around ``TokenizerManager.generate_request``, through which every response passes."""
    apply_headers(obj, self.server_args)
    has_budgets = config_from(self.server_args) is not None
    if has_budgets:
        inbox.guard_answers(self)
        _check_size(obj, over_http=request is not None)
    async for out in original(self, obj, request):
        if has_budgets:
            for item in out if isinstance(out, list) else [out]:
                if isinstance(item, dict) and isinstance(item.get("meta_info"), dict):
                    _spread(item["meta_info"])
        yield out


def _metadata(response: Any, serving: Any, ret: list[dict[str, Any]]) -> None:
    has_budgets = config_from(serving.tokenizer_manager.server_args) is not None
    if not has_budgets or getattr(response, "metadata", None) is None:
        return
    for key in ("kv_budget", "kv_resident_tokens", "kv_overwritten_tokens", "kv_cut_tokens"):
        values = [item["meta_info"].get(key) for item in ret]
        if any(value is not None for value in values):
            response.metadata[key] = values[0] if len(values) == 1 else values


def openai_chat_response(response: Any, self: Any, request: Any, ret: Any, created: int) -> None:
    _metadata(response, self, ret)


def openai_completion_response(
    response: Any, self: Any, request: Any, ret: Any, created: int
) -> None:
    _metadata(response, self, ret)
