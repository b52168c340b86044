# SPDX-License-Identifier: Apache-2.0
"""The API key from the environment: it stands in no list of processes and in no shell history."""

from __future__ import annotations

import os


def key_of_environment() -> str | None:
    """The value of LONGFLOW_API_KEY without blanks around it; None if there is none."""
    return os.environ.get("LONGFLOW_API_KEY", "").strip() or None
