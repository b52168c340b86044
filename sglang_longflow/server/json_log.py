# SPDX-License-Identifier: Apache-2.0
"""A server's log as JSON lines: one object per log record, printed line, or traceback.

SGLang's processes log through `JsonFormatter`; `JsonLines` passes that on and wraps all the rest
(uvicorn's lines, prints, tracebacks), so that a collector of logs can read every line.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, BinaryIO

_BEGIN = b'{"time": "'
_UVICORN = re.compile(r"^(?:\[\d{4}-[^\]]*\] +)?(DEBUG|INFO|WARNING|ERROR|CRITICAL): +(.+)$")
_TRACEBACK = "Traceback (most recent call last):"
#: Loggers that SGLang quietens itself, unless it is told to log in another way.
_QUIET = {"httpx": "WARNING", "httpcore": "WARNING", "flashinfer": "ERROR"}


def record(
    message: str, *, level: str = "INFO", logger: str, time: float | None = None, **more: Any
) -> str:
    """One JSON line, without its end: ``time`` (ISO 8601, UTC), ``level``, ``logger``,
    ``message``, and what else there is to say."""
    now = datetime.now(UTC) if time is None else datetime.fromtimestamp(time, UTC)
    stamp = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields = {"time": stamp, "level": level, "logger": logger, "message": message, **more}
    return json.dumps(fields, ensure_ascii=False, default=str)


class JsonFormatter(logging.Formatter):
    """`record` for the log records of a process, with the name that SGLang gave the process."""

    def format(self, record_: logging.LogRecord) -> str:
        more: dict[str, Any] = {"process": _process_title() or record_.processName}
        if record_.exc_info:
            more["exception"] = self.formatException(record_.exc_info)
        return record(
            record_.getMessage(),
            level=record_.levelname,
            logger=record_.name,
            time=record_.created,
            **more,
        )


def _process_title() -> str:
    """Such as ``sglang::scheduler_TP0``; empty if a process has set no title."""
    try:
        from setproctitle import getproctitle
    except ImportError:
        return ""
    title = getproctitle()
    return title if title.startswith("sglang::") else ""


def logging_config(level: str) -> dict[str, Any]:
    """For ``logging.config.dictConfig``, by SGLang's SGLANG_LOGGING_CONFIG_PATH."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": f"{__name__}.{JsonFormatter.__name__}"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "root": {"level": level.upper(), "handlers": ["stderr"]},
        "loggers": {name: {"level": quiet} for name, quiet in _QUIET.items()},
    }


def texts_of(line: str) -> list[str]:
    """The lines of text in a line of a log: those of a JSON record's message and exception."""
    if line.startswith(_BEGIN.decode()):
        try:
            fields = json.loads(line)
        except ValueError:
            return [line]
        parts = (fields.get("message"), fields.get("exception"))
        return [text for part in parts if part for text in str(part).splitlines()]
    return [line]


class JsonLines:
    """A binary stream that turns what is written to it into JSON lines on another one.

    Of a line that is written again and again (a progress bar, by ``\\r``) the last state counts. A
    traceback is one record. Call `finish` at the end.
    """

    def __init__(self, out: BinaryIO):
        self._out = out
        self._rest = b""
        self._traceback: list[str] = []

    def write(self, chunk: bytes) -> int:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            for found in self._records(line):
                self._out.write(found + b"\n")
        return len(chunk)

    def flush(self) -> None:
        self._out.flush()

    def finish(self) -> None:
        """Write what is left of an unfinished line or traceback."""
        self.write(b"\n" if self._rest else b"")
        for found in self._end_traceback():
            self._out.write(found + b"\n")
        self.flush()

    def _records(self, line: bytes) -> Iterator[bytes]:
        states = [state for state in line.split(b"\r") if state.strip()]
        if not states:
            return
        text = states[-1].decode(errors="replace").rstrip()
        if self._traceback:
            self._traceback.append(text)
            if not text.startswith((" ", _TRACEBACK)):  # the exception itself
                yield from self._end_traceback()
        elif text.startswith(_TRACEBACK):
            self._traceback = [text]
        elif states[-1].startswith(_BEGIN):
            yield states[-1]
        else:
            found = _UVICORN.match(text)
            level, message = found.groups() if found else ("INFO", text)
            yield record(message, level=level, logger="output").encode()

    def _end_traceback(self) -> Iterator[bytes]:
        lines, self._traceback = self._traceback, []
        if lines:
            whole = "\n".join(lines)
            yield record(lines[-1], level="ERROR", logger="output", exception=whole).encode()
