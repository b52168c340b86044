# SPDX-License-Identifier: Apache-2.0
"""What a misspelt name was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean X?``, or nothing if nothing is near. Upper and lower case are alike."""
    names = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.7)
    return f"; did you mean {names[close[0]]}?" if close else ""
