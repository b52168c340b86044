# SPDX-License-Identifier: Apache-2.0
"""The console's files, with the headers that they and the data are served with."""

from __future__ import annotations

from importlib import resources

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
PAGE = "index.html"
#: Nothing but our own files may run, be shown or be asked; nothing may frame the page.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
}
#: Files may be kept but are asked for again; data is not kept.
FILE_HEADERS = {**HEADERS, "Cache-Control": "no-cache"}
DATA_HEADERS = {**HEADERS, "Cache-Control": "no-store"}


def load_files() -> dict[str, tuple[bytes, str]]:
    """(content, content type) of every file of the console by name, the page included."""
    folder = resources.files("sglang_longflow") / "monitor" / "static"
    return {
        file.name: (file.read_bytes(), _TYPES[file.name.rsplit(".", 1)[-1]])
        for file in folder.iterdir()
    }
