# SPDX-License-Identifier: Apache-2.0
"""What a request asks for: a KV budget and a policy, in the forms that clients send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Budget:
    """The KV budget of a request.

    Parameters
    ----------
    tokens : int, optional
        KV slots that the request may hold; 0 is full KV; None leaves it to the server.
    policy : str, optional
        Eviction policy; None leaves it to the server.

    Raises
    ------
    ValueError
        A negative number of tokens, or a value of another type. Bounds and policies are the
        server's: it answers HTTP 400 to a budget that it does not accept.
    """

    tokens: int | None = None
    policy: str | None = None

    def __post_init__(self) -> None:
        tokens, policy = self.tokens, self.policy
        if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int)):
            raise ValueError(f"kv_budget={tokens!r}: expected an integer number of tokens")
        if tokens is not None and tokens < 0:
            raise ValueError(f"kv_budget={tokens}: expected tokens > 0, or 0 for full KV")
        if policy is not None and not isinstance(policy, str):
            raise ValueError(f"kv_policy={policy!r}: expected the name of a policy")

    def custom_params(self) -> dict[str, Any]:
        """SGLang's ``custom_params``: ``{"kv_budget": 1600}``; empty if nothing is asked for."""
        named = {"kv_budget": self.tokens, "kv_policy": self.policy}
        return {key: value for key, value in named.items() if value is not None}

    def params(self) -> dict[str, Any]:
        """``{"custom_params": {"kv_budget": 1600}}``, for both kinds of API.

        It is the ``extra_body`` of an OpenAI client, and a part of the ``sampling_params`` of
        ``/generate`` and of `Engine.generate`.
        """
        return {"custom_params": self.custom_params()}

    def headers(self) -> dict[str, str]:
        """The same as HTTP headers, for endpoints whose bodies have no room for it."""
        named = {"X-KV-Budget": self.tokens, "X-KV-Policy": self.policy}
        return {key: str(value) for key, value in named.items() if value is not None}
