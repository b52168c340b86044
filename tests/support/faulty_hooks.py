# SPDX-License-Identifier: Apache-2.0
"""A scheduler whose hooks fail for requests that ask for it by their id; runs in its process.

The id ``fault:MODULE:FUNCTION`` makes that function of `sglang_longflow.hooks` raise, for this
request alone. What a hook reads of a request it reads in these.
"""

from __future__ import annotations

import functools
import importlib

#: Hooks of one request, and what the hooks of a whole batch read of each request.
FUNCTIONS = (
    "request:init_req_max_new_tokens",
    "request:add_request_to_queue",
    "admission:_running_offset",
    "admission:_add_one_req",
    "admission:_add_chunked_req",
    "admission:live_row",
    "prompt:compute_max_prefix_len",
    "admission:_end_chunk",
    "prompt:_to_cut",
    "slots:resident_row",
    "slots:reset_for_retract",
    "report:_latest",
)


def _raises_for(name: str, function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        requests = [arg for arg in args if isinstance(getattr(arg, "rid", None), str)]
        if any(req.rid.startswith(f"fault:{name}") for req in requests):
            raise LookupError(f"a fault in {name}")
        return function(*args, **kwargs)

    return wrapper


def run_scheduler_process(*args, **kwargs):
    """SGLang's entry point of a scheduler process, under the probe."""
    import probe

    for name in FUNCTIONS:
        module, function = name.split(":")
        found = importlib.import_module(f"sglang_longflow.hooks.{module}")
        setattr(found, function, _raises_for(name, getattr(found, function)))
    return probe.run_scheduler_process(*args, **kwargs)
