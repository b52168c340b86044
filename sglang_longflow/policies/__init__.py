"""Eviction policies, one small file each. See CONTRIBUTING.md for adding one."""

from __future__ import annotations

from sglang_longflow.policies.base import FullRows, Policy, PromptEnd
from sglang_longflow.policies.longflow import LongFlow
from sglang_longflow.policies.random import Random
from sglang_longflow.policies.streaming import Streaming
from sglang_longflow.policies.tova import Tova

_POLICIES: dict[str, type[Policy]] = {cls.name: cls for cls in (LongFlow, Streaming, Tova, Random)}


def policy_names() -> tuple[str, ...]:
    """Names accepted by --kv-policy and by requests."""
    return tuple(_POLICIES)


def make_policy(
    name: str, *, protect_sink_tokens: int = 0, protect_recent_tokens: int = 0
) -> Policy:
    """The policy called `name`; KeyError where there is none (callers check `policy_names`)."""
    return _POLICIES[name](
        protect_sink_tokens=protect_sink_tokens, protect_recent_tokens=protect_recent_tokens
    )


__all__ = ["FullRows", "Policy", "PromptEnd", "make_policy", "policy_names"]
