# SPDX-License-Identifier: Apache-2.0
"""The tools that `make tools` installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items) -> None:
    """A worker takes a whole file, for its server; `--dist loadgroup` reads the marks."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def tools() -> Path:
    """Folder of the tools: ``venv/bin`` and ``node/node_modules``."""
    folder = ROOT / os.environ.get("TOOLS", ".tools")
    if not (folder / "stamp").is_file():
        pytest.fail(f"{folder} is no folder of tools; `make test-deploy` makes it")
    return folder
