# SPDX-License-Identifier: Apache-2.0
"""The fuzzer's own files, and SGLang's schema of the routes that it asks."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def document() -> dict:
    """What GET /openapi.json of a server answers."""
    from sglang.srt.entrypoints.http_server import app

    return app.openapi()
