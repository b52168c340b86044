"""ServerArgs: the --kv-* flags, defaults for a budget server, and refusals by flag."""

from __future__ import annotations

import argparse
import contextvars
import logging
from typing import Any

from sglang_longflow import support
from sglang_longflow.config import FLAG_NAMES, FLAGS, config_from

logger = logging.getLogger(__name__)

# from_cli_args of SGLang passes only its own fields to ServerArgs(...); ours travel here.
_from_command_line: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar(
    "longflow_command_line", default=None
)


def add_cli_args(result: None, parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("longflow: a fixed KV budget per request")
    for flag in FLAGS:
        option = "--" + flag.name.replace("_", "-")
        if flag.type is bool:
            group.add_argument(option, action="store_true", default=flag.default, help=flag.help)
        else:
            group.add_argument(
                option,
                type=flag.type,
                default=flag.default,
                choices=flag.choices,
                help=flag.help,
            )


def from_cli_args(original, cls, args: argparse.Namespace):
    values = {name: getattr(args, name) for name in FLAG_NAMES if hasattr(args, name)}
    token = _from_command_line.set(values)
    try:
        return original(cls, args)
    finally:
        _from_command_line.reset(token)


def init(original, self, *args, **kwargs):
    values = {flag.name: flag.default for flag in FLAGS}
    values.update(_from_command_line.get() or {})
    values.update({name: kwargs.pop(name) for name in FLAG_NAMES if name in kwargs})
    # Before the original: its __post_init__, which is hooked too, reads them.
    for name, value in values.items():
        setattr(self, name, value)
    return original(self, *args, **kwargs)


def post_init(original, self) -> None:
    config = config_from(self)
    if config is None:
        return original(self)
    # "auto" is decided here, once: the configuration is read again with every request.
    self.kv_decode_kernel = config.kv_decode_kernel
    support.refuse_flags(self)
    changed = support.apply_defaults(self, config)
    original(self)
    support.refuse_flags(self)
    support.refuse_model(self, config)
    if changed:
        logger.info("longflow set %s", ", ".join(f"{k}={v!r}" for k, v in changed.items()))
