# SPDX-License-Identifier: Apache-2.0
"""A small Hugging Face hub on this machine, for tests: files by path, errors, slowness."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class FakeHub:
    """What it answers, by path; every path without an entry is a model that does not exist.

    An entry is the content, or a status with the hub's ``X-Error-Code`` (the address of a
    redirection). ``asked`` holds the path, the token and the range of each request.
    """

    address: str = ""
    files: dict[str, bytes | tuple[int, str]] = field(default_factory=dict)
    delay_s: float = 0.0
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)

    def put(self, name: str, filename: str, content: bytes, revision: str = "main") -> None:
        self.files[f"/{name}/resolve/{revision}/{filename}"] = content

    def refuse(self, name: str, status: int, code: str, filename: str = "config.json") -> None:
        self.files[f"/{name}/resolve/main/{filename}"] = (status, code)

    def stand_in(self, monkeypatch, cache: Path) -> None:
        """Hugging Face's library asks here, and keeps what it gets in `cache`."""
        template = self.address + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in (
            ("ENDPOINT", self.address),
            ("HUGGINGFACE_CO_URL_TEMPLATE", template),
            ("HF_HUB_OFFLINE", False),
            ("HF_HUB_CACHE", str(cache)),
        ):
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        # It is no test of how busy this machine is.
        monkeypatch.setattr("sglang_longflow.settings.model_source.HUB_SECONDS", 60.0)


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that listens until the end of the block."""
    hub = FakeHub()
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked_range = self.headers.get("Range")
            hub.asked.append((self.path, self.headers.get("Authorization"), asked_range))
            if hub.delay_s and ended.wait(hub.delay_s):
                return
            entry = hub.files.get(self.path, (401, "RepoNotFound"))
            status, content = (entry[0], b"") if isinstance(entry, tuple) else (200, entry)
            if asked_range and not isinstance(entry, tuple):
                first, last = asked_range.removeprefix("bytes=").split("-")
                status, content = 206, content[int(first) : int(last) + 1]
            self.send_response(status)
            if isinstance(entry, tuple) and entry[1]:
                is_elsewhere = status // 100 == 3
                self.send_header("Location" if is_elsewhere else "X-Error-Code", entry[1])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *args) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
