# SPDX-License-Identifier: Apache-2.0
"""Files that a user names, or that anyone may have written: read without waiting, in bounds."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

#: A config.json is a few kB; an index of safetensors files some MB.
MOST_JSON_BYTES = 64 << 20


def user_path(name: str) -> Path:
    """A path as a user writes it; ``~name`` of nobody stays as it is, where pathlib raises."""
    return Path(os.path.expanduser(name))


def read_bytes(file: Path) -> bytes:
    """What an ordinary file holds.

    Raises
    ------
    OSError
        It cannot be read, or is no ordinary file: a pipe may be waited for without an end, and
        gives its content once.
    """
    mode = file.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not an ordinary file", str(file))
    return file.read_bytes()


def read_json(file: Path, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """What a JSON file holds.

    Raises
    ------
    OSError
        As `read_bytes`.
    ValueError
        It is no JSON, nested too deeply, or longer than `most_bytes`.
    """
    if (size := file.stat().st_size) > most_bytes:
        raise ValueError(f"{size:,} bytes; expected at most {most_bytes:,}")
    return parse_json(read_bytes(file))


def parse_json(data: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises
    ------
    ValueError
        It is none, or nested too deeply.
    """
    try:
        return json.loads(data.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None
