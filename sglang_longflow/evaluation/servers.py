"""A real server for those policies that can share one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from sglang_longflow.errors import BenchError, EvalError
from sglang_longflow.local_http import first_port
from sglang_longflow.preflight import free_port
from sglang_longflow.serve import prepare
from sglang_longflow.supervise import Server

START_TIMEOUT_S = 600.0


def server_arguments(
    model: Path, key: tuple[str, int, int], port: int, more: Sequence[str]
) -> list[str]:
    """For `longflow serve`; `key` is `Variant.server`, `more` are the user's."""
    policy, sinks, recent = key
    return [
        str(model),
        f"--port={port}",
        "--kv-budget=0",
        f"--kv-policy={policy}",
        f"--kv-protect-sink-tokens={sinks}",
        f"--kv-protect-recent-tokens={recent}",
        "--random-seed=1",
        "--log-level=warning",
        *more,
    ]


@contextmanager
def started(
    arguments: Sequence[str],
    what: str,
    verbose: bool = False,
    environment: Mapping[str, str] | None = None,
    start_timeout_s: float = START_TIMEOUT_S,
) -> Iterator[str]:
    """The url of a server that is ready; it ends with the block.

    Where it dies in the block, which so gets an `EvalError` or a `BenchError`, that becomes
    `ServerEnded`, with what its log says last.

    `arguments` are for `longflow serve`, `what` is printed, `environment` is added to the
    server's.
    """
    settings, _ = prepare(list(arguments))
    echo = getattr(sys.stderr, "buffer", None) if verbose else None
    variables = {**settings.environment, **(environment or {})}
    with Server(settings.arguments, settings.url, echo, variables) as server:
        print(f"starting a server for {what}")
        print(f"ready in {server.wait_ready(start_timeout_s):.0f} s", flush=True)
        try:
            yield settings.url
        except (EvalError, BenchError) as error:
            raise server.end_of(error) from None


@contextmanager
def running_server(
    model: Path,
    key: tuple[str, int, int],
    more: Sequence[str],
    names: Iterable[str],
    verbose: bool = False,
) -> Iterator[str]:
    """The url of a server that is ready; it ends with the block. `names` are printed."""
    port = free_port("127.0.0.1", first_port())
    what = ", ".join(dict.fromkeys(names))
    with started(server_arguments(model, key, port, more), what, verbose) as url:
        yield url
