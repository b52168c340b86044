# SPDX-License-Identifier: Apache-2.0
"""Where this package keeps what it made or measured on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$LONGFLOW_CACHE``, or ``~/.cache/sglang-longflow``."""
    configured = os.environ.get("LONGFLOW_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache/sglang-longflow"
