# SPDX-License-Identifier: Apache-2.0
"""``longflow serve``. It reads its own command line: most of its words are SGLang's."""

from __future__ import annotations

from sglang_longflow.server import serve


def run(argv: list[str]) -> int:
    """Start a server; returns the exit status."""
    return serve.run(argv)
