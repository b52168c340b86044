# SPDX-License-Identifier: Apache-2.0
"""Packages that only some evaluations need."""

from __future__ import annotations

import importlib

from sglang_longflow.errors import ConfigError


def require_extra(module: str, setting: str, instead: str = "") -> None:
    """Say at once, and not after hours of answers, that a package is missing.

    Parameters
    ----------
    module : str
        As it is imported.
    setting : str
        What needs it, such as ``"plot=True"``.
    instead : str
        What else the user can do.

    Raises
    ------
    ConfigError
        It cannot be imported; the message says how to install it.
    """
    try:
        importlib.import_module(module)
    except ImportError:
        name = module.replace("_", "-")
        raise ConfigError(
            f"{setting}: {name} is not installed; pip install {name}"
            + (f", or {instead}" if instead else "")
        ) from None
