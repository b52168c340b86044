# SPDX-License-Identifier: Apache-2.0
"""The tools themselves: what is missing shows here, by name."""

import shutil
import subprocess

import pytest

pytestmark = pytest.mark.deploy


@pytest.mark.parametrize("command", ["promtool", "prometheus", "chromium", "kubectl", "node"])
def test_command_is_on_path(command):
    assert shutil.which(command)


def test_validators_run(tools):
    done = subprocess.run(
        [tools / "venv/bin/hadolint", "--version"], capture_output=True, text=True, check=True
    )
    assert "Haskell Dockerfile Linter" in done.stdout
