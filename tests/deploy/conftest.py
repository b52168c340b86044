"""The tools that `make tools` installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tools() -> Path:
    """Folder of the tools: ``venv/bin`` and ``node/node_modules``."""
    folder = ROOT / os.environ.get("TOOLS", ".tools")
    if not (folder / "stamp").is_file():
        pytest.fail(f"{folder} is no folder of tools; `make test-deploy` makes it")
    return folder
