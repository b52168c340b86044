# SPDX-License-Identifier: Apache-2.0
"""SGLang's engine in this process, with the plugin's settings as named keywords."""

from __future__ import annotations

from typing import Any, Literal

from sglang.srt.entrypoints.engine import Engine as SGLangEngine


class Engine(SGLangEngine):
    """``sglang.Engine`` whose signature lists the ``kv_*`` settings; nothing else differs.

    ``sglang.Engine(kv_budget=...)`` does the same wherever this package is installed. The
    keywords are the flags of ``longflow serve`` with underscores.

    Parameters
    ----------
    kv_budget : int, optional
        Default budget of a request, in tokens per layer; 0 is full KV by default. None: the plugin
        does nothing.
    kv_policy : str, optional
        Eviction policy.
    kv_budget_min, kv_budget_max : int, optional
        Bounds of what a request may ask for, in tokens.
    kv_budget_allow_full : bool
        Whether a request may ask for full KV.
    kv_protect_sink_tokens, kv_protect_recent_tokens : int
        Tokens at either end of a request that are never overwritten.
    kv_victims, kv_decode_kernel : str
        As the flags.
    kv_planned_rows : int, optional
        Requests at `kv_budget` that are counted on; a pool of another size is reported.
    **server_arguments
        SGLang's own, such as ``model_path``.

    Raises
    ------
    ConfigError, UnsupportedSetup
        A setting is wrong, or does not go together with a budget.
    TypeError
        The plugin is kept from loading (``SGLANG_PLUGINS``): SGLang does not know the keywords.
    """

    def __init__(
        self,
        *,
        kv_budget: int | None = None,
        kv_policy: str | None = None,
        kv_budget_min: int | None = None,
        kv_budget_max: int | None = None,
        kv_budget_allow_full: bool = False,
        kv_protect_sink_tokens: int = 0,
        kv_protect_recent_tokens: int = 0,
        kv_victims: Literal["layer", "kv_head"] = "layer",
        kv_decode_kernel: Literal["auto", "triton", "reference"] = "auto",
        kv_planned_rows: int | None = None,
        **server_arguments: Any,
    ):
        ours: dict[str, Any] = dict(
            kv_budget=kv_budget,
            kv_policy=kv_policy,
            kv_budget_min=kv_budget_min,
            kv_budget_max=kv_budget_max,
            kv_budget_allow_full=kv_budget_allow_full,
            kv_protect_sink_tokens=kv_protect_sink_tokens,
            kv_protect_recent_tokens=kv_protect_recent_tokens,
            kv_victims=kv_victims,
            kv_decode_kernel=kv_decode_kernel,
            kv_planned_rows=kv_planned_rows,
        )
        # What is at its default is not handed on: stock SGLang has none of these keywords, and an
        # engine without a budget is to be stock SGLang.
        defaults = type(self).__init__.__kwdefaults__ or {}
        given = {name: value for name, value in ours.items() if value != defaults.get(name)}
        super().__init__(**given, **server_arguments)
