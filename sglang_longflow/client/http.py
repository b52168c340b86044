# SPDX-License-Identifier: Apache-2.0
"""The package's HTTP client: JSON to and from a server, and its streams of events.

One place decides what requests must not do: follow a redirect (a key is for the server it was given
for), or take a proxy from the environment to a server on this machine. `measure.throughput.streams`
alone has another client, and says why.
"""

from __future__ import annotations

import contextlib
import json
import os
import ssl
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from httpx import Response


class NoResponse(OSError):
    """A server does not answer, or its answer was broken off; the text says why."""


def first_port() -> int:
    """First port that this process probes for a free one, derived from its PID.

    A server listens only once it has loaded its model: until then its port looks free to others.
    So commands that start together must look in different places. Below the ports that systems
    give to outgoing connections.
    """
    return 20_000 + os.getpid() % 1_250 * 8


@contextlib.contextmanager
def opened(
    url: str,
    body: dict[str, Any] | bytes | None = None,
    *,
    timeout_s: float | None = 600,
    api_key: str | None = None,
    headers: dict[str, str] | None = None,
    is_local: bool = True,
    verify: bool = True,
    on_socket: Callable[[Any], None] | None = None,
) -> Iterator[Response]:
    """The response to a POST of `body` as JSON, or to a GET without one; its content is unread.

    Parameters
    ----------
    body : dict or bytes, optional
        Bytes are sent as they are; name their ``Content-Type`` in `headers`.
    timeout_s : float, optional
        Longest wait for the connection, and between two parts of the answer; None waits for as
        long as the server lives.
    api_key : str, optional
        Sent as a bearer token.
    is_local : bool
        The server is on this machine, or reached as if it were: proxies of the environment are
        not used.
    verify : bool
        Check an https server's certificate, against those that this system trusts.
    on_socket : callable, optional
        Is given the connection's socket before anything is sent, for another thread to shut down.

    Raises
    ------
    NoResponse
        The server does not answer, or breaks off while the block reads. A status that tells of an
        error is no exception.
    """
    # A third of a second: only commands that ask something pay for it.
    import httpx

    sent = {"Accept-Encoding": "identity", **(headers or {})}
    if api_key:
        sent["Authorization"] = f"Bearer {api_key}"
    if not all(value.isascii() for value in sent.values()):
        raise NoResponse("the API key has characters that no header can hold; it must be ASCII")
    # Loading the system's certificates takes a while, and http needs none (its proxy may).
    needs_context = verify and (url.startswith("https") or not is_local)
    context = ssl.create_default_context() if needs_context else False
    client = httpx.Client(headers=sent, timeout=timeout_s, trust_env=not is_local, verify=context)
    content: dict[str, Any] = {"content" if isinstance(body, bytes) else "json": body}
    if on_socket is not None:
        content["extensions"] = {"trace": _socket_seen_by(on_socket)}
    try:
        with client, client.stream("GET" if body is None else "POST", url, **content) as response:
            yield response
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise NoResponse(str(error) or type(error).__name__) from error


def _socket_seen_by(on_socket: Callable[[Any], None]) -> Callable[[str, dict[str, Any]], None]:
    def trace(event: str, info: dict[str, Any]) -> None:  # httpcore's names
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            on_socket(info["return_value"].get_extra_info("socket"))

    return trace


def ask(url: str, body: dict[str, Any] | None = None, **how: Any) -> Response:
    """The whole response, whatever its status; arguments and errors are those of `opened`."""
    with opened(url, body, **how) as response:
        response.read()
        return response


def lines(response: Response) -> Iterator[bytes]:
    """A response's lines as they come, without their ends.

    Only a newline ends a line: httpx's own ``iter_lines`` also breaks at U+2028 and the like, which
    JSON may hold as they are.
    """
    unfinished = b""
    for part in response.iter_bytes():
        *whole, unfinished = (unfinished + part).split(b"\n")
        yield from whole
    if unfinished:
        yield unfinished


def event_of(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line of server-sent events; None for lines without one."""
    found = json.loads(line[len(b"data: ") :]) if line.startswith(b"data: {") else None
    return found if isinstance(found, dict) else None


def problem_of(event: dict[str, Any]) -> str:
    """What an event says if the request failed after its headers were sent; else empty."""
    if "error" not in event:
        return ""
    error = event["error"]
    return str(error.get("message", error) if isinstance(error, dict) else error)
