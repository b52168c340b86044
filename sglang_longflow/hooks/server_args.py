# SPDX-License-Identifier: Apache-2.0
"""ServerArgs: the --kv-* flags, defaults for a budget server, and refusals by flag."""

from __future__ import annotations

import argparse
import contextvars
import logging
from typing import Any

from sglang_longflow.errors import LongFlowError, UnsupportedSetup
from sglang_longflow.hooks import start_check
from sglang_longflow.hooks.sglang_types import Original
from sglang_longflow.settings import compatibility, preflight
from sglang_longflow.settings.config import LongFlowConfig, config_from
from sglang_longflow.settings.flags import FLAG_NAMES, FLAGS, HIDDEN_FLAGS
from sglang_longflow.settings.model_source import find_config
from sglang_longflow.settings.release import TESTED_SGLANG

logger = logging.getLogger(__name__)
#: Attribute of settings that `post_init` accepted (it raises otherwise): the budget.
CHECKED = "longflow_checked"

# from_cli_args of SGLang passes only its own fields to ServerArgs(...); ours travel here.
_from_command_line: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar(
    "longflow_command_line", default=None
)


class _Asked(argparse._StoreAction):
    """A flag of ours on a command line: `start_check` then sees to it that it has an effect."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        super().__call__(parser, namespace, values, option_string)
        start_check.expect_settings(option_string or self.dest)


def add_cli_args(result: None, parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("longflow: a fixed KV budget per request")
    for flag in FLAGS:
        if flag.type is bool:
            group.add_argument(
                flag.option, action="store_true", default=flag.default, help=flag.help
            )
        else:
            group.add_argument(
                flag.option,
                action=_Asked,
                type=flag.type,
                default=flag.default,
                choices=flag.choices,
                help=flag.help,
            )


def from_cli_args(original: Original, cls: type, args: argparse.Namespace) -> Any:
    values = {name: getattr(args, name) for name in FLAG_NAMES if hasattr(args, name)}
    token = _from_command_line.set(values)
    try:
        settings = original(cls, args)
        _refuse_lost(values, settings)
    except LongFlowError as error:
        start_check.stop(str(error))  # an operator's line: a traceback says nothing more
    finally:
        _from_command_line.reset(token)
    return settings


def _refuse_lost(values: dict[str, Any], settings: Any) -> None:
    """By what came out: the settings' class may be of a kind whose ``__init__`` never runs."""
    for flag in FLAGS:
        value = values.get(flag.name, flag.default)
        if value != flag.default and getattr(settings, flag.name, None) is None:
            raise UnsupportedSetup(
                f"{flag.option} {value}: was lost on its way to ServerArgs, which is of another "
                f"kind than in SGLang {', '.join(TESTED_SGLANG)}; drop {flag.option}"
            )


def init(original: Original, self: Any, *args: Any, **kwargs: Any) -> None:
    values = {flag.name: flag.default for flag in (*FLAGS, *HIDDEN_FLAGS)}
    values.update(_from_command_line.get() or {})
    values.update({name: kwargs.pop(name) for name in FLAG_NAMES if name in kwargs})
    # Before the original: its __post_init__, which is hooked too, reads them.
    for name, value in values.items():
        setattr(self, name, value)
    original(self, *args, **kwargs)
    if self.kv_budget is not None and getattr(self, CHECKED, None) != self.kv_budget:
        raise UnsupportedSetup(
            f"kv_budget={self.kv_budget!r}: SGLang made its settings without ServerArgs."
            f"__post_init__, where they are judged; drop --kv-budget"
        )


def post_init(original: Original, self: Any) -> Any:
    config = config_from(self)
    if config is None:
        return original(self)
    # "auto" is decided here, once: the configuration is read again with every request.
    self.kv_decode_kernel = config.kv_decode_kernel
    compatibility.refuse_release()
    _refuse_rust_server()
    values = _values(self)
    preflight.refuse(values, _model_at_hand(values))
    changed = compatibility.apply_defaults(self, config)
    setattr(
        self, CHECKED, config.kv_budget
    )  # now: SGLang seals its settings once they are resolved
    original(self)
    _refuse_unresolved(self, config)
    compatibility.refuse_flags(self)
    compatibility.refuse_model(self, config)
    start_check.record_settings()
    if changed:
        logger.info("longflow set %s", ", ".join(f"{k}={v!r}" for k, v in changed.items()))


def _values(settings: Any) -> dict[str, Any]:
    """Everything that is set, by name; a class with slots has no dict of it all."""
    slots = getattr(settings, "__struct_fields__", ())
    return {**{name: getattr(settings, name, None) for name in slots}, **vars(settings)}


def _model_at_hand(values: dict[str, Any]) -> dict[str, Any] | None:
    """The model's config where it is on this machine; SGLang itself asks the hub."""
    found = find_config(str(values.get("model_path")), values.get("revision"), hub=False)
    return None if found is None or found.source == "built-in" else found.config


def _refuse_rust_server() -> None:
    from sglang.srt.environ import envs

    if envs.SGLANG_RUST_SERVER.get():
        raise UnsupportedSetup(
            "SGLANG_RUST_SERVER=1: SGLang's HTTP server in Rust is not supported with a KV budget; "
            "unset SGLANG_RUST_SERVER"
        )


def _refuse_unresolved(settings: Any, config: LongFlowConfig) -> None:
    """Settings that ``__post_init__`` left open were not worth judging."""
    if settings.device is None and settings.model_path.lower() not in ("none", "dummy"):
        raise UnsupportedSetup(
            f"kv_budget={config.kv_budget}: ServerArgs.__post_init__ left device=None, so settings "
            f"are worked out after they are judged; drop --kv-budget"
        )
