# SPDX-License-Identifier: Apache-2.0
"""SGLang's settings as it has worked them out; the record itself keeps what the operator typed."""

from __future__ import annotations

from typing import Any


def resolved(server_args: Any) -> Any:
    """A read view of ``ServerArgs``: each field as SGLang decided it so far.

    Our own ``kv_*`` attributes, which no field declares, are read from the record. Nothing was
    decided yet on what carries no list of decisions: it is its own view.
    """
    if not hasattr(server_args, "_resolved_overrides"):
        return server_args
    from sglang.srt.arg_groups.model_override_base import resolving_view

    return resolving_view(server_args)
