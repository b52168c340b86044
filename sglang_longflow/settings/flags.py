# SPDX-License-Identifier: Apache-2.0
"""The server flags, the policies' names and what asks for a budget: tables without torch.

`settings.config` makes the typed configuration of the flags; the planner, the YAML reader and the
supervisor, which do not import torch, read them here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sglang_longflow.settings.files import read_bytes, user_path

#: Every policy, and the least budget it can work with where no tokens are protected: in tokens.
#: The classes in `sglang_longflow.policies` need torch; a test compares them with this table.
LEAST_BUDGET_TOKENS = {
    "longflow": 34,
    "streaming": 2,
    "tova": 34,
    "random": 34,
    "longflow-peak": 34,
    "longflow-novel": 38,
    "h2o": 34,
    "h2o-last": 34,
    "vatp": 54,
    "snapkv-decode": 34,
    "rkv": 34,
    "rpc": 64,
    "keydiff": 34,
}
#: What a server ranks by unless it is told otherwise, and its least budget.
DEFAULT_POLICY = "longflow-novel"
MIN_BUDGET_TOKENS = LEAST_BUDGET_TOKENS[DEFAULT_POLICY]

_KINDS = {int: "int", str: "str", bool: "flag"}


@dataclass(frozen=True)
class Flag:
    """One command-line flag; its name with underscores is the Engine(...) keyword too."""

    name: str
    type: type
    default: Any
    help: str
    choices: tuple[str, ...] | None = None

    @property
    def option(self) -> str:
        """As written on a command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def kind(self) -> str:
        """ "int", "str" or "flag" (no value), as in `server.options.Option`."""
        return _KINDS[self.type]


FLAGS = (
    Flag(
        "kv_budget",
        int,
        None,
        "Default KV budget of a request, in tokens kept resident (per layer). A request that "
        "reaches it overwrites its least useful slot from then on. 0: full KV by default, budgets "
        "by request. Unset: the plugin does nothing.",
    ),
    Flag("kv_policy", str, DEFAULT_POLICY, f"Eviction policy: {', '.join(LEAST_BUDGET_TOKENS)}."),
    Flag("kv_budget_min", int, None, "Smallest kv_budget a request may ask for."),
    Flag(
        "kv_budget_max",
        int,
        None,
        "Largest kv_budget a request may ask for. Unset: kv_budget, or what the pool holds where "
        "full KV is allowed.",
    ),
    Flag(
        "kv_budget_allow_full",
        bool,
        False,
        "Let requests ask for full KV with kv_budget 0.",
    ),
    Flag("kv_protect_sink_tokens", int, 0, "Never overwrite the first N tokens of a request."),
    Flag("kv_protect_recent_tokens", int, 0, "Never overwrite the last N tokens of a request."),
    Flag(
        "kv_victims",
        str,
        "layer",
        "layer: one victim per layer and request, as published. kv_head: each KV head overwrites "
        "its own (needs the triton decode kernel).",
        ("layer", "kv_head"),
    ),
    Flag(
        "kv_decode_kernel",
        str,
        "auto",
        "triton: attention, score and victim in Triton kernels. reference: SGLang's attention, "
        "then the score in PyTorch, without CUDA graphs. auto: triton on a GPU where it can rank "
        "by the policy, else reference.",
        ("auto", "triton", "reference"),
    ),
    Flag(
        "kv_planned_rows",
        int,
        None,
        "Requests at the budget that a deployment's numbers count on; longflow render writes it. "
        "A pool that holds over 10 % fewer or more is reported.",
    ),
)
FLAG_NAMES = tuple(flag.name for flag in FLAGS)


def budget_words(argv: Sequence[str]) -> str:
    """The first of our settings on a command line or in its YAML file, as written; else empty."""
    options = [flag.option for flag in FLAGS]
    for i, word in enumerate(argv):
        flag, is_joined, value = word.partition("=")
        if flag in options:
            return flag
        if flag == "--config":
            path = value if is_joined else "".join(argv[i + 1 : i + 2])
            if found := _key_of_file(path):
                return f"{found} in {path}"
    return ""


def _key_of_file(path: str) -> str:
    import yaml

    try:
        content = yaml.safe_load(read_bytes(user_path(path)).decode())
    except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError):
        return ""  # SGLang, which reads it too, says what is wrong with it
    keys = content if isinstance(content, dict) else {}
    return next((str(key) for key in keys if str(key).replace("-", "_") in FLAG_NAMES), "")
