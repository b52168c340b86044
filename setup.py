# SPDX-License-Identifier: Apache-2.0
"""Puts configs/ and deploy/ into the wheel; everything else is in pyproject.toml.

Both stay at the top of the checkout. In the wheel they are data of `sglang_longflow.deployment`,
where `longflow render` finds them. Package data cannot name folders outside the package, and
data files would need a line for each of the 30 folders.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("configs", "deploy")


class BuildWithFolders(build_py):
    """Copies `FOLDERS` beside the modules that use them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # an editable install reads the checkout itself
            return
        data = Path(self.build_lib, "sglang_longflow", "deployment", "data")
        shutil.rmtree(data, ignore_errors=True)  # of an earlier build
        for name in FOLDERS:
            shutil.copytree(name, data / name, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithFolders})
