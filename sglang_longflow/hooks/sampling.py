# SPDX-License-Identifier: Apache-2.0
"""Sampling, SGLang's side: keeps one request's parameters from ending its whole batch."""

from __future__ import annotations

from typing import Any

import torch

from sglang_longflow.core import runtime


def preprocess_logits(
    result: Any, self: Any, logits_output: Any, sampling_info: Any, observer: Any = None
) -> None:
    """After ``ModelRunner._preprocess_logits``: in place, without a wait for the device.

    A grammar may allow no next token, and with ``min_new_tokens`` every token may be a stop token.
    Then top-k, top-p and min-p would draw from NaN, and SGLang end with all requests. A token that
    the grammar does not take ends the one request; SGLang sees to that.
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
