# SPDX-License-Identifier: Apache-2.0
"""uvicorn's access log without what watches ask: a line per second and viewer hides the rest."""

from __future__ import annotations

import logging
import re

#: Paths as the console asks for them: any other way to write one is somebody's doing.
_WATCHED = re.compile(r"/health|/longflow(/\w*){0,2}(\.\w+)?", re.ASCII)
#: What a watch can do nothing about, a wrong key or address, stays in the log.
_USUAL = (200, 304, 503)


class NoPolls(logging.Filter):
    """Drops the usual answers to GET ``/longflow`` and below it, and to GET ``/health``.

    For the logger ``uvicorn.access``, whose records carry (client, method, path, HTTP version,
    status); records of another form stay. `root_path` is uvicorn's, which its paths begin with.
    """

    def __init__(self, root_path: str = ""):
        super().__init__()
        self._root_path = root_path.rstrip("/")

    def filter(self, record: logging.LogRecord) -> bool:
        match record.args:
            case (_, "GET", str(path), _, int(status)) if status in _USUAL:
                path = path.partition("?")[0].removeprefix(self._root_path)
                return not _WATCHED.fullmatch(path)
        return True
