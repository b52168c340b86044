# SPDX-License-Identifier: Apache-2.0
"""What a misspelt name was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean X?``, or nothing if nothing is near. Upper and lower case are alike.

    A name of three letters or more that begins others, such as fp8, is meant for those.
    """
    names = {one.lower(): one for one in known}
    begun = [one for lower, one in names.items() if lower.startswith(name.lower())]
    if len(name.lstrip("-")) >= 3 and 0 < len(begun) <= 3:
        return f"; did you mean {' or '.join(begun)}?"
    close = difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.7)
    return f"; did you mean {names[close[0]]}?" if close else ""
