# SPDX-License-Identifier: Apache-2.0
"""What a stand-in for a kernel of SGLang does not know is refused."""

from __future__ import annotations

from typing import Any


def refuse(name: str, **values: Any) -> None:
    """Raise NotImplementedError if a value that a stand-in does not know is not None or False."""
    for key, value in values.items():
        if value is not None and value is not False:
            raise NotImplementedError(f"{name}: {key} is not supported on the CPU platform")
