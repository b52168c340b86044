# SPDX-License-Identifier: Apache-2.0
"""The console page on this machine, for a server that a browser cannot open it from.

With --api-key SGLang asks every request for the key, a browser's first one too, which cannot carry
it. Here the page is open, asks for the key, and its requests are handed on with it: GETs of the
data routes, and the prompts of the Try tab (`monitor.hand_on`).
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from sglang_longflow.client.http import NoResponse
from sglang_longflow.monitor import hand_on
from sglang_longflow.monitor.client import ask_route
from sglang_longflow.monitor.page import DATA_HEADERS, FILE_HEADERS, PAGE, load_files

DATA_ROUTES = ("stats", "plan", "history")
TIMEOUT_S = 15.0
DRAIN_S = 2.0
#: Names this machine calls itself by: with another Host header, a page of a site whose name was
#: pointed here could read what only this machine may see.
LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")


class Relay(ThreadingHTTPServer):
    """Serves the page at ``/longflow`` and hands what it asks on to `url`."""

    daemon_threads = True
    request_queue_size = 128  # pages open many connections at once

    def __init__(self, url: str, port: int):
        self.url = url
        self.files = load_files()
        super().__init__(("127.0.0.1", port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Relay
    protocol_version = "HTTP/1.1"
    #: For the next request on a connection, and for a reader that takes nothing of an answer.
    timeout = 30.0

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        parts = path.strip("/").split("/")
        # A body that nobody reads must not be taken for the next request.
        self.close_connection |= "Content-Length" in self.headers
        self.close_connection |= "Transfer-Encoding" in self.headers
        if len(self.headers.get_all("Host", [])) > 1 or not self._is_for_us():
            self._error(421, "this relay answers to 127.0.0.1 and localhost only")
        elif parts in (["longflow"], [""]):
            self._file(PAGE)
        elif len(parts) == 3 and parts[:2] == ["longflow", "static"]:
            self._file(parts[2])
        elif len(parts) == 2 and parts[0] == "longflow" and parts[1] in DATA_ROUTES:
            self._hand_on(f"{parts[1]}?{query}" if query else parts[1])
        elif parts in (["docs"], ["metrics"]):  # links of the page, to pages of the server itself
            self._answer(302, b"", {"Location": f"{self.server.url}/{parts[0]}"})
        else:
            self._error(404, "the relay has no such page")

    def do_POST(self) -> None:
        try:
            if not self._is_for_us():
                raise hand_on.Refused(421, "this relay answers to 127.0.0.1 and localhost only")
            if self.path not in hand_on.ROUTES:
                known = " and ".join(hand_on.ROUTES)
                raise hand_on.Refused(404, f"the relay hands on {known} only")
            if self.request_version != "HTTP/1.1":
                raise hand_on.Refused(505, "an answer that streams needs HTTP/1.1")
            hand_on.check_headers(self.headers)
            hand_on.check_sender(self.headers)
            body = hand_on.read_body(self.headers, self.rfile)
        except hand_on.Refused as refused:
            return self._refuse(refused)
        try:
            self._stream(body)
        except OSError:  # the page has left, or reads nothing
            self.close_connection = True

    def _refuse(self, refused: hand_on.Refused) -> None:
        """Say why, and give the sender time to read it: its body may still be coming."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self._error(refused.status, str(refused))
            self.connection.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + DRAIN_S
            self.connection.settimeout(DRAIN_S)
            while time.monotonic() < deadline and self.connection.recv(2**20):
                pass

    def _stream(self, body: bytes) -> None:
        has_begun = False
        key = self.headers.get("Authorization")
        try:
            with hand_on.asked(self.server.url + self.path, body, key, self.connection) as answer:
                self._begin(answer.status, answer.media_type)
                has_begun = True
                for part in filter(None, answer.parts):
                    self._chunk(part)
            self._chunk(b"")  # the end
        except NoResponse as error:
            if not has_begun:
                return self._error(502, f"{self.server.url} does not answer: {error}")
            # Without a last chunk a reader knows that this is not the end.
            self.close_connection = True
            if answer.media_type.startswith("text/event-stream"):
                self._chunk(hand_on.broken_off(error))

    def _begin(self, status: int, media_type: str) -> None:
        self.send_response(status)
        headers = DATA_HEADERS | {"Content-Type": media_type, "Transfer-Encoding": "chunked"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _chunk(self, part: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))

    def _is_for_us(self) -> bool:
        try:
            host = urlsplit(f"//{self.headers.get('Host', '')}")
            return host.username is None and host.hostname in LOCAL_NAMES
        except ValueError:  # no host name at all
            return False

    def _file(self, name: str) -> None:
        if name not in self.server.files:
            return self._error(404, "the console has no such file")
        content, media_type = self.server.files[name]
        self._answer(200, content, FILE_HEADERS | {"Content-Type": media_type})

    def _hand_on(self, route: str) -> None:
        try:
            key = self.headers.get("Authorization")
            found = ask_route(self.server.url, route, key, TIMEOUT_S)
        except NoResponse as error:
            return self._error(502, f"{self.server.url} does not answer: {error}")
        headers = DATA_HEADERS | {"Content-Type": "application/json"}
        self._answer(found.status_code, found.content, headers)

    def _error(self, status: int, message: str) -> None:
        body = {"object": "error", "message": message, "type": str(status), "code": status}
        headers = DATA_HEADERS | {"Content-Type": "application/json"}
        self._answer(status, json.dumps(body).encode(), headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a page asks once a second."""
