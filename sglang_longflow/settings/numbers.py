# SPDX-License-Identifier: Apache-2.0
"""Whole numbers as SGLang's command line takes them for tokens: 32768, 32k, 32Ki."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

#: Fields of ServerArgs that take them, for ``--x`` of the same name.
READABLE = (
    *("context_length", "max_total_tokens", "max_prefill_tokens"),
    "cuda_graph_prefill_max_context",
)
_FACTORS = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_FACTORS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_FORM = re.compile(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|k|M|G|T)")


def as_int(value: Any) -> int | None:
    """The number that a value stands for; None if it is none, or a fraction of 1,024s.

    Source: ``human_readable_int`` of SGLang's ``utils/common.py``.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        return None
    if match := _FORM.fullmatch(value.strip()):
        number, unit = match.groups()
        if "." in number and unit.endswith("i"):
            return None
        return int(Decimal(number) * _FACTORS[unit])
    try:
        return int(value)
    except ValueError:
        return None
