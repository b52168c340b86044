"""The tools that `make tools` installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tools() -> Path:
    """Folder of the tools: ``venv/bin`` and ``node/node_modules``."""
    folder = ROOT / os.environ.get("TOOLS", ".tools")
    if not (folder / "stamp").is_file():
        pytest.fail(f"{folder} is no folder of tools; `make test-deploy` makes it")
    return folder
