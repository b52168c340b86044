# SPDX-License-Identifier: Apache-2.0
"""What this package was installed from, for messages that say how to install it again.

No package index has it, so no message may name it alone: whoever registers the name there would
own each machine on which that command is run. tests/docs/test_install_commands.py looks for it.
"""

from __future__ import annotations

import importlib.metadata
import json
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

DISTRIBUTION = "sglang-longflow"
_COMMAND = "pip install --force-reinstall --no-deps"


def direct_url() -> dict[str, Any]:
    """What pip wrote into ``direct_url.json`` of the installation (PEP 610); empty without one."""
    try:
        text = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
        found = json.loads(text or "{}")
    except (importlib.metadata.PackageNotFoundError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def checkout() -> Path | None:
    """The checkout that this code runs from; None where it was copied into an environment."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() else None


def pip_source(record: dict[str, Any], root: Path | None) -> str:
    """pip's argument for the same package again, quoted for a shell; "" if that is gone or unknown.

    Parameters
    ----------
    record : dict
        `direct_url`.
    root : Path or None
        `checkout`, which wins: it is the code that runs.
    """
    if root is not None:
        return f"-e {shlex.quote(str(root))}"
    url = str(record.get("url", ""))
    if vcs := record.get("vcs_info"):
        commit = vcs.get("commit_id")
        return shlex.quote(f"{vcs.get('vcs')}+{url}" + (f"@{commit}" if commit else ""))
    if not url.startswith("file:"):
        return shlex.quote(url) if url else ""
    path = Path(unquote(urlsplit(url).path))
    return shlex.quote(str(path)) if path.exists() else ""


def reinstall_command() -> str:
    """How to install this package again from where it came from."""
    if source := pip_source(direct_url(), checkout()):
        return f"{_COMMAND} {source}"
    return f"in a checkout of {DISTRIBUTION}: {_COMMAND} ."
