# SPDX-License-Identifier: Apache-2.0
"""Where this package keeps what it made or measured on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from sglang_longflow.errors import ConfigError
from sglang_longflow.settings.files import user_path


def cache_folder() -> Path:
    """``$LONGFLOW_CACHE``, or ``~/.cache/sglang-longflow``.

    Raises
    ------
    ConfigError
        Neither is there: a container may run as a user without a home.
    """
    if configured := os.environ.get("LONGFLOW_CACHE"):
        return user_path(configured)
    try:
        return Path.home() / ".cache/sglang-longflow"
    except RuntimeError as error:
        raise ConfigError(
            "LONGFLOW_CACHE: not set, and this user has no home; set LONGFLOW_CACHE to a folder"
        ) from error
