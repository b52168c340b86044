"""The fuzzer's own files, and SGLang's schema of the routes that it asks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def document() -> dict:
    """What GET /openapi.json of a server answers."""
    from sglang.srt.entrypoints.http_server import app

    return app.openapi()
