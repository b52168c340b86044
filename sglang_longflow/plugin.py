# SPDX-License-Identifier: Apache-2.0
"""SGLang's entry point (group ``sglang.srt.plugins``): registers the hooks, nothing else.

SGLang calls it in the main process and again in every scheduler process, then applies the hooks,
and swallows what either raises. So `hooks.verify` checks the result before a server with a budget
starts, and `hooks.start_check` checks that there is a result. On an SGLang that was not tested no
budget can be set: one that is asked for ends the process here.
"""

from __future__ import annotations

import functools
import logging
import sys

from sglang_longflow.hooks import start_check
from sglang_longflow.settings.flags import budget_words
from sglang_longflow.settings.release import refusal, remedy, untested_sglang

logger = logging.getLogger(__name__)

#: What keeps requests from asking for a budget where none can be set.
REFUSALS = ("request:validate_one_request", "http:setup_and_run_http_server")


@functools.cache  # once a process: SGLang may call it again
def load_plugin() -> None:
    """Register every row of the manifest with SGLang's HookRegistry; idempotent."""
    if problem := untested_sglang():
        if word := budget_words(sys.argv[1:]):
            start_check.stop(refusal(word))
        logger.warning("longflow stays off: %s; %s", problem, remedy())
        _register(REFUSALS)
    else:
        start_check.arm()
        _register(None)
        _take_part_in_resolution()


def _take_part_in_resolution() -> None:
    from sglang_longflow.hooks.server_args import give_to_engine, register_steps

    register_steps()
    give_to_engine()


def _register(only: tuple[str, ...] | None) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from sglang_longflow.hooks import verify
    from sglang_longflow.hooks.manifest import MANIFEST

    for hook in MANIFEST:
        if only is not None and (
            hook.handler_path not in only or verify.check_hook(hook, applied=False).problem
        ):
            continue
        HookRegistry.register(hook.target, hook.handler(), HookType(hook.kind))
