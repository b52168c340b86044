"""A real server for those policies that can share one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sglang_longflow.local_http import FIRST_PORT
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
def running_server(
    model: Path,
    key: tuple[str, int, int],
    more: Sequence[str],
    names: Iterable[str],
    verbose: bool = False,
) -> Iterator[str]:
    """The url of a server that is ready; it ends with the block. `names` are printed."""
    port = free_port("127.0.0.1", FIRST_PORT)
    settings, _ = prepare(server_arguments(model, key, port, more))
    echo = getattr(sys.stderr, "buffer", None) if verbose else None
    with Server(settings.arguments, settings.url, echo, settings.environment) as server:
        print(f"starting a server for {', '.join(dict.fromkeys(names))}")
        print(f"ready in {server.wait_ready(START_TIMEOUT_S):.0f} s", flush=True)
        yield settings.url
