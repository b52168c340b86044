"""Requests to a server that this process started, or was told to measure."""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any

# They go to this machine: a proxy from the environment has no business with them.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def first_port() -> int:
    """Where this process looks for a free port: elsewhere than the next one that was started.

    A server listens only once it has loaded its model, so two that look in the same place find the
    same port. Below the ports that systems give to outgoing connections.
    """
    return 20_000 + os.getpid() % 1_250 * 8


def open_json(
    url: str,
    body: dict[str, Any] | None,
    timeout_s: float | None = 600,
    api_key: str | None = None,
) -> Any:
    """The open response to a POST of `body`, or to a GET where there is none.

    `timeout_s` is between two parts of an answer; None waits for as long as the server lives.

    Raises
    ------
    OSError
        The server does not answer, or with an error (`urllib.error.HTTPError`).
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    request = urllib.request.Request(url, data, headers)
    return _OPENER.open(request, timeout=timeout_s)
