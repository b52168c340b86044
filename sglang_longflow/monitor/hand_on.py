# SPDX-License-Identifier: Apache-2.0
"""A prompt of the Try tab on its way through the relay: what it refuses, and the answer's stream.

A page of another site can make a browser send a request here. So only what this relay's own page
sends is handed on: a browser says where a request comes from, and lets another site's page send
JSON only after it has asked, which the relay never allows.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from typing import Any, Protocol

from sglang_longflow.client.http import NoResponse, opened
from sglang_longflow.monitor.client import is_local

#: What may be asked: the two endpoints that the Try tab uses.
ROUTES = ("/v1/chat/completions", "/v1/completions")
MAX_BODY_BYTES = 4 * 2**20
BODY_TIMEOUT_S = 20.0
#: Longest wait for the next part of an answer: a request may wait in the server's queue.
ANSWER_TIMEOUT_S = 600.0
#: Statuses after which nothing may follow, where the page would wait for chunks.
_BODILESS = (204, 205, 304)
#: Headers by which is judged, or which are handed on: of two, one would be judged by alone.
_ONCE = ("Host", "Origin", "Sec-Fetch-Site", "Content-Type", "Content-Length", "Authorization")
_PART_BYTES = 2**16


class Refused(Exception):
    """A request that is not handed on.

    Attributes
    ----------
    status : int
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class _Reader(Protocol):
    def read1(self, size: int = -1, /) -> bytes: ...


def check_headers(headers: Message) -> None:
    """Refuse a header that comes twice, where one decides.

    Raises
    ------
    Refused
        400.
    """
    for name in _ONCE:
        if len(headers.get_all(name, [])) > 1:
            raise Refused(400, f"{name}: is given twice; send one")


def check_sender(headers: Message) -> None:
    """Refuse what another site's page could have sent.

    Programs send neither ``Origin`` nor ``Sec-Fetch-Site``; every browser sends one with a POST.

    Raises
    ------
    Refused
        403: another origin. 415: no JSON.
    """
    origin, site = headers.get("Origin"), headers.get("Sec-Fetch-Site", "same-origin")
    own = f"http://{headers.get('Host', '')}"
    if origin not in (None, own) or site != "same-origin":
        sender = origin or f"Sec-Fetch-Site: {site}"
        raise Refused(403, f"{sender:.80}: only this relay's own page may ask ({own})")
    media_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Refused(415, f"Content-Type={media_type[:80]!r}: expected application/json")


def read_body(headers: Message, reader: _Reader) -> bytes:
    """The request's body.

    Raises
    ------
    Refused
        408: it does not come in time. 411: its length is not given. 413: it is too long.
    """
    given = headers.get("Content-Length", "")
    if "Transfer-Encoding" in headers or not (given.isascii() and given.isdigit()):
        raise Refused(411, "Content-Length: is required, in bytes")
    if len(given) > 12 or int(given) > MAX_BODY_BYTES:
        raise Refused(413, f"Content-Length={given[:20]}: more than {MAX_BODY_BYTES:,} bytes")
    left, parts, deadline = int(given), [], time.monotonic() + BODY_TIMEOUT_S
    while left:
        try:
            part = reader.read1(min(left, _PART_BYTES))
        except TimeoutError:
            part = b""
        if not part or time.monotonic() > deadline:
            raise Refused(408, f"the body did not come within {BODY_TIMEOUT_S:g} s")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


@dataclass(frozen=True)
class Answer:
    """A server's answer as it comes."""

    status: int
    media_type: str
    parts: Iterator[bytes]


@contextlib.contextmanager
def asked(
    url: str, body: bytes, authorization: str | None, client: socket.socket
) -> Iterator[Answer]:
    """The answer to a POST of `body`; the request to the server ends once `client` hangs up.

    Raises
    ------
    NoResponse
        The server does not answer, or breaks off while the block reads.
    """
    headers = {"Content-Type": "application/json"}
    if authorization:
        headers["Authorization"] = authorization
    upstream = _Upstream()
    with (
        _ended_with(client, upstream.shut),
        opened(
            url,
            body,
            headers=headers,
            is_local=is_local(url),
            timeout_s=ANSWER_TIMEOUT_S,
            on_socket=upstream.opened,
        ) as response,
    ):
        if response.status_code in _BODILESS:
            raise NoResponse(f"status {response.status_code} is no answer to a prompt")
        kind = response.headers.get("Content-Type", "application/json")
        if not (kind.isascii() and kind.isprintable()):
            kind = "application/octet-stream"
        yield Answer(response.status_code, kind, response.iter_bytes())


def broken_off(error: NoResponse) -> bytes:
    """The event, in the form of SGLang's own, that tells a page why its stream ends."""
    message = f"the server broke off its answer: {error}"
    return f"data: {json.dumps({'error': {'message': message, 'code': 502}})}\n\n".encode()


class _Upstream:
    """The connection to the server, which another thread may have to shut down."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_shut = False

    def opened(self, connection: Any) -> None:
        with self._lock:
            self._socket = connection
            if self._is_shut:
                self._shut()

    def shut(self) -> None:
        with self._lock:
            self._is_shut = True
            self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                # Not SSLSocket's own, which only one thread may use.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


@contextlib.contextmanager
def _ended_with(client: socket.socket, end: Callable[[], None]) -> Iterator[None]:
    """While the block runs, call `end` once if `client` hangs up."""
    mine, theirs = socket.socketpair()

    def watch() -> None:
        poll = select.poll()  # select() takes no descriptor over 1,023
        for one in (client, theirs):
            poll.register(one, select.POLLIN)
        if theirs.fileno() in dict(poll.poll()):
            return
        with contextlib.suppress(OSError):
            if client.recv(1, socket.MSG_PEEK):
                return  # it sends on: no page does
        end()

    watcher = threading.Thread(target=watch, name="client-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        mine.close()
        watcher.join()
        theirs.close()
