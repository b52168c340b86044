# SPDX-License-Identifier: Apache-2.0
"""An SGLang server as a child process: started, watched until it answers, and ended for certain."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from sglang_longflow.client.http import NoResponse, ask
from sglang_longflow.errors import LongFlowError
from sglang_longflow.server.json_log import texts_of

RECENT_LINES = 2000
POLL_INTERVAL_S = 0.3
#: SGLang's main process outlives a scheduler that has died by about a second, and by more on a busy
#: machine.
END_WITHIN_S = 10.0
#: SGLang's /health generates a token, and gives up itself after 20 seconds.
HEALTH_TIMEOUT_S = 30.0
_PR_SET_PDEATHSIG = 1
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_EXCEPTION = re.compile(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|Setup|NotApplied): .+)$")
# The plugin's own last word, which ends a start without a traceback.
_OURS = re.compile(r"^longflow: (error: .+)$")
_USAGE = re.compile(r"^[\w. -]+: (error: .+)$")
# What SGLang's main process raises when a scheduler has already printed the reason.
_POINTS_ELSEWHERE = "see the error messages above"
# How SGLang tells that one of its processes was killed; 9 is what the kernel uses.
_CHILD_KILLED = re.compile(
    r"Subprocess \w+ \(pid=\d+\) crashed with exit code -9\b"
    r"|scheduler died during initialization \(exit code: -9\)"
)
# What it prints before it ends itself, by the same signal.
_ENDS_ITSELF = ("SIGQUIT received", "Received sigquit", "SIGTERM received", "Initialization failed")
_POOL = re.compile(r"--max-total-tokens(?:=|$)(\d*)")


class Echo(Protocol):
    """Where a server's output goes: a binary file, or what stands in for one."""

    def write(self, chunk: bytes, /) -> int: ...
    def flush(self) -> None: ...


class ServerEnded(LongFlowError):
    """The server is gone; the message says how, and quotes its log."""

    exit_status = 1


def last_error(lines: Iterable[str]) -> str:
    """The log line that best explains why the process ended; empty for an empty log."""
    texts = (text for line in lines for text in texts_of(line))
    cleaned = [text for line in texts if (text := _ANSI.sub("", line).strip())]
    for pattern in (_OURS, _EXCEPTION, _USAGE):
        for line in reversed(cleaned):
            match = pattern.match(line)
            if match and _POINTS_ELSEWHERE not in line:
                return match.group(1)
    return cleaned[-1] if cleaned else ""


def describe_status(returncode: int) -> str:
    """``exit status 1`` or ``signal 9``, from a Popen return code."""
    return f"signal {-returncode}" if returncode < 0 else f"exit status {returncode}"


def was_killed(returncode: int, lines: Iterable[str]) -> bool:
    """Whether the server, or a process of it, got signal 9 from elsewhere, such as the kernel."""
    texts = [text for line in lines for text in texts_of(line)]
    if any(_CHILD_KILLED.search(text) for text in texts):
        return True
    ends_itself = any(sign in text for text in texts for sign in _ENDS_ITSELF)
    return returncode == -signal.SIGKILL and not ends_itself


def out_of_memory(arguments: Sequence[str]) -> str:
    """Why the kernel kills, and what helps; with a number where the pool's size is known."""
    smaller = "N"
    for word, following in zip(arguments, (*arguments[1:], "")):
        if match := _POOL.fullmatch(word):
            tokens = match.group(1) or following
            smaller = str(int(tokens) // 2) if tokens.isdecimal() else "N"
    return (
        f"killed by the kernel (signal 9), probably out of memory; --max-total-tokens {smaller} "
        f"makes the pool smaller"
    )


def _names_of_group(group: int) -> Iterator[str]:
    """Names of the processes of a process group, as the kernel cuts them."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            before, _, after = stat.read_text().rpartition(")")
            if int(after.split()[2]) == group:
                yield before.partition("(")[2]


def _end_with_parent() -> None:
    """In the child: get SIGTERM when the supervisor dies, however it dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Server:
    """``python -m sglang.launch_server`` in a new process group.

    The group makes sure that nothing is left behind: SGLang's schedulers belong to it, and it is
    killed as a whole once the main process has ended. Signals go to the main process alone, which
    drains its requests first. As a context manager it stops the server at the end, at once where
    the block raises.

    Parameters
    ----------
    arguments : sequence of str
        Server arguments.
    url : str
        Where the server will answer.
    echo : Echo, optional
        Gets the server's output as it comes; without it only the last lines are kept.
    environment : mapping, optional
        Variables for the server; those that are set already win.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        url: str,
        echo: Echo | None = None,
        environment: Mapping[str, str] | None = None,
    ):
        self.url = url
        self.arguments = list(arguments)
        self.recent: deque[str] = deque(maxlen=RECENT_LINES)
        self.forwarded: int | None = None
        self._echo = echo
        self._killed = False
        self._listens = False
        self._started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sglang.launch_server", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**(environment or {}), **os.environ, "PYTHONUNBUFFERED": "1"},
            preexec_fn=_end_with_parent,  # safe: no thread of ours runs yet
        )
        self._pump = threading.Thread(target=self._read_output, name="server-output", daemon=True)
        self._pump.start()

    def _read_output(self) -> None:
        pipe = self.process.stdout
        assert pipe is not None
        unfinished = b""
        while chunk := os.read(pipe.fileno(), 65536):
            if self._echo is not None:
                with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
                    self._echo.write(chunk)
                    self._echo.flush()
            # Progress bars rewrite their line with "\r".
            *lines, unfinished = (unfinished + chunk).replace(b"\r", b"\n").split(b"\n")
            self.recent.extend(line.decode(errors="replace") for line in lines)
        if unfinished:
            self.recent.append(unfinished.decode(errors="replace"))

    def answers(self) -> bool:
        """Whether ``GET /health`` is 200 now."""
        try:
            # Our own child on this machine: its certificate names another host.
            response = ask(self.url + "/health", timeout_s=HEALTH_TIMEOUT_S, verify=False)
        except NoResponse:
            return False
        self._listens = True
        return response.status_code == 200

    def stage(self) -> str:
        """What a server that does not answer yet is doing."""
        if self._listens:
            return "warming up"
        names = list(_names_of_group(self.process.pid))
        if any(name.startswith("sglang::schedul") for name in names):
            return "loading the model"
        return "importing SGLang"

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def running_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def wait_ready(self, timeout_s: float | None = None) -> float:
        """Wait until the server answers; returns seconds since it was started.

        Raises
        ------
        ServerEnded
            It ended before, or did not answer in time. No process of it is left.
        """
        while self.process.poll() is None:
            # A port that answers is ours only while the child lives: checked in this order.
            if self.answers() and self.process.poll() is None:
                return self.running_s
            if timeout_s is not None and self.running_s > timeout_s:
                self.kill()
                raise ServerEnded(f"the server did not answer within {timeout_s:.0f} s")
            time.sleep(POLL_INTERVAL_S)
        raise self._ended("ended during start-up")

    def end_of(self, error: Exception) -> Exception:
        """Why the server ended, where that is behind an `error` of asking it, else the error."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_WITHIN_S)
        if self.process.poll() is None:
            return error
        return self._ended("ended while it was asked")

    def _ended(self, how: str) -> ServerEnded:
        status = describe_status(self.process.returncode)
        self.kill()
        if was_killed(self.process.returncode, self.recent):
            reason = out_of_memory(self.arguments)
        else:
            reason = last_error(self.recent) or "it printed nothing"
        return ServerEnded(f"the server {how} ({status}): {reason}")

    def wait(self) -> int:
        """Wait for the end of a server that was ready; returns its exit status.

        0 after a forwarded SIGTERM or SIGINT: SGLang drains its requests and then kills its whole
        process tree, itself included, so its own status would read signal 9.

        Raises
        ------
        ServerEnded
            It was not asked to end, and did so with an error.
        """
        while self.process.poll() is None:
            time.sleep(POLL_INTERVAL_S)
        if self.forwarded is not None:
            interrupted = self._killed
            self.kill()
            return 128 + self.forwarded if interrupted else 0
        if self.process.returncode == 0:
            self.kill()
            return 0
        raise self._ended("ended")

    def forward(self, signum: int) -> None:
        """Pass a signal on; a second one kills, for those who do not want to wait."""
        # Runs in a signal handler: nothing here may wait for a lock that poll() holds.
        if self.forwarded is not None:
            self._kill_group()
            return
        self.forwarded = signum
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signum)

    def _kill_group(self) -> None:
        self._killed = self._killed or self.process.poll() is None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def stop(self, grace_s: float = 30.0) -> None:
        """End the server: SIGTERM first, the whole group after the grace time."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_s)
        self.kill()

    def kill(self) -> None:
        """Kill whatever is left of the process group."""
        self._kill_group()
        self.process.wait()
        self._pump.join(timeout=5)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        if kind is None:
            self.stop()
        else:
            self.kill()


@contextlib.contextmanager
def forwarding(server: Server) -> Iterator[None]:
    """Forward SIGTERM, SIGINT and SIGHUP to the server while the block runs."""

    def handler(signum: int, frame: object) -> None:
        # A closed terminal means the same as a request to end.
        server.forward(signal.SIGTERM if signum == signal.SIGHUP else signum)

    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    previous = {signum: signal.signal(signum, handler) for signum in signals}
    try:
        yield
    finally:
        for signum, old in previous.items():
            signal.signal(signum, old)
