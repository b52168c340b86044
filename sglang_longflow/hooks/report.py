# SPDX-License-Identifier: Apache-2.0
"""Release, SGLang's side: the row's numbers on their way to meta_info and OpenAI metadata."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import orjson

from sglang_longflow.core.fields import check_call, check_samples
from sglang_longflow.core.http_budget import apply_headers
from sglang_longflow.core.report import report
from sglang_longflow.hooks import inbox
from sglang_longflow.hooks.sglang_types import Original, Req, TokenizerManager
from sglang_longflow.settings.config import config_from

logger = logging.getLogger(__name__)

CUSTOMIZED_INFO_KEY = "longflow"
#: What OpenAI answers have of a report, in ``metadata``.
METADATA_KEYS = ("kv_budget", "kv_resident_tokens", "kv_overwritten_tokens", "kv_cut_tokens")


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
            logger.exception("longflow: no report of request %.200r", self._req.rid)
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
        # A stream's list is the one that SGLang gathers in, and copies for every chunk: 16,000
        # entries at a long answer's end. Where it cuts by tokens, this is a slice of that list.
        reports[:] = [latest]
        meta_info.update(latest)


def _prompts(obj: Any) -> int:
    """How many prompts a call has, as SGLang counts them; it says what is wrong with other types.

    One prompt is a text, a list of token ids, or a list of rows of floats.
    """
    if obj.text is not None:
        return len(obj.text) if isinstance(obj.text, list) else 1
    given = obj.input_embeds if obj.input_ids is None else obj.input_ids
    if not isinstance(given, list) or not given or isinstance(given[0], int):
        return 1
    if obj.input_ids is None and given[0] and isinstance(given[0][0], float):
        return 1
    return len(given)


def _check_size(obj: Any, *, over_http: bool) -> None:
    """How many requests a call becomes; `sglang.Engine` may ask for as many as it likes."""
    given = obj.sampling_params
    samples = 1
    for sampling in given if isinstance(given, list) else [given]:
        if isinstance(sampling, dict) and "n" in sampling:
            check_samples(sampling["n"])
            samples = max(samples, sampling["n"])
    if over_http:
        check_call(_prompts(obj), samples)


async def generate_request(
    original: Original, self: TokenizerManager, obj: Any, request: Any = None
) -> AsyncIterator[Any]:
    """Around ``TokenizerManager.generate_request``, through which every response passes."""
    apply_headers(obj, self.preferred_sampling_params)
    has_budgets = config_from(self.server_args) is not None
    if has_budgets:
        inbox.guard_answers(self)
        _check_size(obj, over_http=request is not None)
    reports = getattr(obj, "longflow_reports", None)
    async for out in original(self, obj, request):
        if has_budgets:
            for item in out if isinstance(out, list) else [out]:
                if isinstance(item, dict) and isinstance(item.get("meta_info"), dict):
                    _spread(item["meta_info"])
                    if reports is not None:
                        reports[item.get("index", 0)] = item["meta_info"]
        yield out


def _numbers(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """``metadata`` of one choice, or lists for several; `reports` are their ``meta_info``."""
    found = {}
    for key in METADATA_KEYS:
        values = [meta_info.get(key) for meta_info in reports]
        if any(value is not None for value in values):
            found[key] = values[0] if len(values) == 1 else values
    return found


def _with_numbers(event: str, reports: dict[int, dict[str, Any]]) -> str:
    """A streamed event that has a ``usage``, with the ``metadata`` of its choices beside it."""
    # A quote within a text is escaped, so this is a key: most events need no reading.
    if not reports or '"usage":{' not in event:
        return event
    chunk = orjson.loads(event.removeprefix("data: "))
    choices = [choice["index"] for choice in chunk["choices"]] or sorted(reports)
    metadata = _numbers([reports[index] for index in choices if index in reports])
    if not metadata:
        return event
    return f"data: {orjson.dumps({**chunk, 'metadata': metadata}).decode()}\n\n"


async def openai_stream(
    original: Original, self: Any, adapted_request: Any, request: Any, raw_request: Any
) -> AsyncIterator[str]:
    """Around the generators of OpenAI streams; who asks for usage gets the numbers beside it."""
    reports: dict[int, dict[str, Any]] = {}
    adapted_request.longflow_reports = reports  # `generate_request` fills it
    stream = original(self, adapted_request, request, raw_request)
    async with contextlib.aclosing(stream) as events:
        async for event in events:
            yield _with_numbers(event, reports)


def openai_response(response: Any, self: Any, request: Any, ret: Any, created: int) -> None:
    """After what builds an OpenAI answer of its choices' ``meta_info``."""
    has_budgets = config_from(self.tokenizer_manager.server_args) is not None
    if has_budgets and getattr(response, "metadata", None) is not None:
        response.metadata.update(_numbers([item["meta_info"] for item in ret]))
