# SPDX-License-Identifier: Apache-2.0
"""Eviction policies, one small file each. See CONTRIBUTING.md for adding one."""

from __future__ import annotations

from sglang_longflow.policies.base import Policy, PromptEnd
from sglang_longflow.policies.h2o import H2O, H2OLast
from sglang_longflow.policies.keydiff import KeyDiff
from sglang_longflow.policies.longflow import LongFlow
from sglang_longflow.policies.longflow_novel import LongFlowNovel
from sglang_longflow.policies.longflow_peak import LongFlowPeak
from sglang_longflow.policies.random import Random
from sglang_longflow.policies.rkv import RKV
from sglang_longflow.policies.rows import FullRows, Needs
from sglang_longflow.policies.rpc import RPC
from sglang_longflow.policies.snapkv_decode import SnapKVDecode
from sglang_longflow.policies.streaming import Streaming
from sglang_longflow.policies.tova import Tova
from sglang_longflow.policies.vatp import VATP

_POLICIES: dict[str, type[Policy]] = {
    cls.name: cls
    for cls in (
        *(LongFlow, Streaming, Tova, Random, LongFlowPeak, LongFlowNovel),  # fused decode
        *(H2O, H2OLast, VATP, SnapKVDecode, RKV, RPC, KeyDiff),  # reference decode only
    )
}


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


__all__ = [
    "FullRows",
    "Needs",
    "Policy",
    "PromptEnd",
    "make_policy",
    "policy_names",
]
