# SPDX-License-Identifier: Apache-2.0
"""Sampling, SGLang's side: keeps one request's parameters from ending its whole batch."""

from __future__ import annotations

from typing import Any

import torch

from sglang_longflow.core import runtime


def preprocess_logits(result: Any, self: Any, logits_output: Any, sampling_info: Any) -> None:
    """After ``ModelRunner._preprocess_logits``: in place, without a wait for the device.

    A grammar may allow no next token, and with ``min_new_tokens`` every token may be a stop token.
    Then SGLang would draw from NaN, and end with all requests. A token that the grammar does not
    take ends the one request; SGLang sees to that.
    """
    if runtime.current() is None or not _can_leave_nothing(sampling_info):
        return
    logits = logits_output.next_token_logits
    hopeless = ~torch.isfinite(logits.amax(dim=-1, keepdim=True))
    logits.masked_fill_(hopeless, 0.0)


def _can_leave_nothing(sampling_info: Any) -> bool:
    """Whether anything but the model has a say in the logits."""
    penalties = sampling_info.penalizer_orchestrator
    return (
        bool(sampling_info.grammars)  # its mask is gone by now
        or sampling_info.acc_additive_penalties is not None
        or sampling_info.logit_bias is not None
        or (penalties is not None and penalties.is_required)
    )


def token_ids_logprobs(
    result: Any, logprobs: Any, token_ids_logprobs_list: Any, stage: Any, *args: Any, **kwargs: Any
) -> Any:
    """After ``get_token_ids_logprobs_raw``: rows that asked for nothing get empty tensors.

    SGLang puts lists for them beside the tensors of rows that asked, and its scheduler then ends on
    ``list.tolist()``: with ``token_ids_logprob`` (all of /v1/score) beside any request without.
    """
    values, ids = result
    if runtime.current() is None or stage.name != "DECODE":
        return None
    if not any(torch.is_tensor(value) for value in values):
        return None
    return [v if torch.is_tensor(v) else torch.empty(0) for v in values], ids
