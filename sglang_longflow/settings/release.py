# SPDX-License-Identifier: Apache-2.0
"""Which SGLang is installed, and whether a budget may be set on it. Does not import it."""

from __future__ import annotations

import importlib.metadata
import sys

#: SGLang releases that the hooks were written for and tested with.
TESTED_SGLANG = ("0.5.23",)
#: Date of the served release.
SERVED_SINCE = "30 October 2026"
#: Earlier releases of SGLang, and the version of this package that serves each.
EARLIER_LINES = {"0.5.17": "0.2"}
#: Newest release whose wheel scripts/check_release.py was run on.
NEWEST_AUDITED = "0.5.23"
FIX = f"pip install sglang=={TESTED_SGLANG[-1]}"


def installed_sglang() -> str:
    """The release that runs, as ``0.5.23``; a build's own suffix, as in ``0.5.23+cu130``, is cut.

    Where SGLang is imported and names another release than its metadata, both: ``0.5.23/0.5.24``.
    """
    found = []
    try:
        found.append(importlib.metadata.version("sglang"))
    except importlib.metadata.PackageNotFoundError:
        pass  # a source tree on PYTHONPATH has no metadata
    imported = getattr(sys.modules.get("sglang"), "__version__", None)
    if imported is not None:
        found.append(str(imported))
    return "/".join(dict.fromkeys(version.split("+")[0] for version in found)) or "missing"


def line() -> str:
    """Which SGLang this plugin follows, since and until when, and how far it has looked ahead."""
    earlier = "; ".join(f"for {sglang} take {ours}" for sglang, ours in EARLIER_LINES.items())
    return (
        f"for SGLang {', '.join(TESTED_SGLANG)} (of {SERVED_SINCE}) until it is ported to a "
        f"newer one; newest looked at {NEWEST_AUDITED}; {earlier}, which gets fixes only"
    )


def untested_sglang() -> str:
    """Why no KV budget may be set with the installed SGLang; empty on a tested release."""
    found = installed_sglang()
    if found in TESTED_SGLANG:
        return ""
    known = ", ".join(TESTED_SGLANG)
    return f"SGLang {found}: not tested with KV budgets ({known} is), so none may be set on it"


def remedy(word: str = "") -> str:
    """What to do about it; an earlier version of this package first where one serves what is there.

    `word` is the argument that asks for a budget, if one does.
    """
    ours = EARLIER_LINES.get(installed_sglang())
    ways = [f"take version {ours} of this package"] if ours else []
    ways += [FIX, f"drop {word}"] if word else [FIX]
    return ", or ".join(filter(None, (", ".join(ways[:-1]), ways[-1])))


def refusal(word: str) -> str:
    """What a server says that is asked for a budget by `word` on such a release; else empty."""
    problem = untested_sglang()
    return problem and f"{problem}; {remedy(word)}"
