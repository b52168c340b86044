# SPDX-License-Identifier: Apache-2.0
"""The folder of ``--out``: whether it takes files is known before minutes of measuring."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sglang_longflow.errors import ConfigError


def writable_folder(folder: Path) -> None:
    """Make the folder of ``--out`` if need be, and see that it takes files.

    Raises
    ------
    ConfigError
        It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"out={str(folder)!r}: {error.strerror}; choose a folder that you may write to"
        ) from None
