# SPDX-License-Identifier: Apache-2.0
"""Server arguments from a YAML file: SGLang's and ours, each checked against its kind."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any

from sglang_longflow.errors import ConfigError
from sglang_longflow.server.options import EXPECTED, Option, gone, server_options
from sglang_longflow.settings.files import read_bytes
from sglang_longflow.settings.nearest import nearest

#: Most values, lists and keys within one setting.
_MOST_PARTS = 10_000


def yaml_arguments(path: Path) -> list[str]:
    """Command-line arguments for what a YAML file sets.

    Raises
    ------
    ConfigError
        No such file, not YAML, an unknown key, or a value of the wrong type.
    """
    import yaml

    try:
        content = yaml.safe_load(read_bytes(path).decode())
    except OSError as error:
        raise ConfigError(f"config={str(path)!r}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        # YAML's own errors are the first; values that only look like a date, or that a tag calls
        # a number, raise what Python's types raise.
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error)[:100]
        if isinstance(error, UnicodeDecodeError):
            reason = "not a text file"
        raise ConfigError(f"{path}: not valid YAML{where}: {reason}") from error
    if content is None:
        return []
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected `argument: value` lines, found {_shown(content)}")
    by_key = {
        key: option
        for option in server_options()
        for key in (option.name, *(flag.lstrip("-").replace("-", "_") for flag in option.flags))
    }
    arguments: list[str] = []
    for key, value in content.items():
        option = by_key.get(str(key).replace("-", "_"))
        if option is None or option.name == "config":
            if fix := gone(str(key)):
                raise ConfigError(f"{path}: {_shown(key)}: {fix}")
            known = [name.replace("_", "-") for name in by_key]
            close = nearest(str(key).replace("_", "-"), known)
            raise ConfigError(f"{path}: unknown key {_shown(key)}{close}")
        arguments += _tokens(path, str(key), option, value)
    return arguments


def _tokens(path: Path, key: str, option: Option, value: Any) -> list[str]:
    """Command-line form of one setting of a YAML file."""
    flag = option.flags[0]
    if value is None:
        return []
    if not _is_plain(value):
        raise _wrong_type(path, key, option, value)
    if option.kind in ("flag", "switch"):
        if not isinstance(value, bool):
            raise _wrong_type(path, key, option, value)
        if value:
            return [flag]
        return ["--no-" + flag[2:]] if option.kind == "switch" else []
    values = value if isinstance(value, list) and option.nargs else [value]
    for item in values:
        if not _fits(option.kind, item):
            raise _wrong_type(path, key, option, value)
    texts = [json.dumps(v) if isinstance(v, dict | list) else str(v) for v in values]
    # One word with "=", so that a value that starts with a dash is not taken for a flag.
    return [flag, *texts] if option.nargs else [f"{flag}={texts[0]}"]


def _is_plain(value: Any) -> bool:
    """Whether JSON and a command line can say it; by aliases a few lines may have no end."""
    left, open_ = _MOST_PARTS, [value]
    while open_:
        left, one = left - 1, open_.pop()
        if left < 0:
            return False
        if isinstance(one, dict):
            open_ += [*one, *one.values()]
        elif isinstance(one, list):
            open_ += one[: _MOST_PARTS + 1]
        elif isinstance(one, str):
            if not _is_word(one):
                return False
        elif not isinstance(one, int | float | None):
            return False
    return True


def _is_word(text: str) -> bool:
    """Whether a command line can hold it."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:  # half of a character of UTF-16
        return False


def _shown(value: Any) -> str:
    """A value for a message, in one short line whatever it holds."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 100, 100
    return short.repr(value)


def _fits(kind: str, value: Any) -> bool:
    if kind == "any":
        return True
    if isinstance(value, bool):
        return False
    accepted = {"int": int, "float": int | float, "str": str | int | float}
    return isinstance(value, accepted[kind])


def _wrong_type(path: Path, key: str, option: Option, value: Any) -> ConfigError:
    many = " (or a list of them)" if option.nargs else ""
    expected = EXPECTED.get(option.kind, "text, numbers, lists and objects")
    return ConfigError(f"{path}: {key}={_shown(value)}: expected {expected}{many}")
