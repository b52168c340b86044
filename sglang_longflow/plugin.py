"""SGLang's entry point (group ``sglang.srt.plugins``): registers the hooks, nothing else.

SGLang calls it in the main process and again in every scheduler process, then applies the hooks,
and swallows what either raises; `hooks.verify` therefore checks the result before a server with a
budget starts.
"""

from __future__ import annotations

_registered = False


def load_plugin() -> None:
    """Register every row of the manifest with SGLang's HookRegistry; idempotent."""
    global _registered
    if _registered:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from sglang_longflow.hooks.manifest import MANIFEST

    for hook in MANIFEST:
        HookRegistry.register(hook.target, hook.handler(), HookType(hook.kind))
    _registered = True
