# SPDX-License-Identifier: Apache-2.0
"""A real server for those policies that can share one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from sglang_longflow.client.http import first_port
from sglang_longflow.errors import BenchError, EvalError
from sglang_longflow.measure.variants import parse_variant
from sglang_longflow.server.preflight import free_port
from sglang_longflow.server.process import Server
from sglang_longflow.server.progress import shared
from sglang_longflow.server.settings import prepare, refuse_mistakes

#: A machine that is busy with other work takes many times as long as a quiet one.
START_TIMEOUT_S = 1800.0


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


def refuse_servers(
    model: Path | str,
    policies: Iterable[str],
    more: Sequence[str],
    setting: str,
    budgets: Iterable[int] = (),
    request_tokens: int | None = None,
) -> None:
    """Raise for what the servers of these policies would refuse, before anything else is done.

    `policies` are as `variants.parse_variant` reads them, `setting` is what errors call them;
    `budgets` and `request_tokens` are of `refuse_mistakes`.
    """
    keys = dict.fromkeys(parse_variant(text, setting).server for text in policies)
    asked = sorted(set(budgets))
    for key in keys:
        argv = server_arguments(Path(model), key, first_port(), more)
        refuse_mistakes(argv, asked, request_tokens)


@contextmanager
def started(
    arguments: Sequence[str],
    what: str,
    verbose: bool = False,
    environment: Mapping[str, str] | None = None,
    start_timeout_s: float = START_TIMEOUT_S,
    most_tokens: int | None = None,
) -> Iterator[str]:
    """The url of a server that is ready; it ends with the block.

    If it dies in the block, the `EvalError` or `BenchError` that the block raises becomes
    `ServerEnded`, with what its log says last.

    `arguments` are for `longflow serve`, `what` is printed, `environment` is added to the
    server's, `most_tokens` is of `prepare`.
    """
    progress = shared()
    progress.say(f"starting a server for {what}")
    settings, _ = prepare(list(arguments), most_tokens)
    echo = getattr(sys.stderr, "buffer", None) if verbose else None
    variables = {**settings.environment, **(environment or {})}
    with Server(settings.arguments, settings.url, echo, variables) as server:
        for label, text in settings.chosen:
            progress.say(f"  {label}: {text}")
        for note in settings.notes:
            progress.say(f"  note: {note}")
        with progress.sign_of_life(lambda: f"  still starting: {server.stage()}"):
            seconds = server.wait_ready(start_timeout_s)
        progress.say(f"ready in {seconds:.0f} s")
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
    most_tokens: int | None = None,
) -> Iterator[str]:
    """The url of a server that is ready; it ends with the block. `names` are printed,
    `most_tokens` is what all requests at once need."""
    port = free_port("127.0.0.1", first_port())
    what = ", ".join(dict.fromkeys(names))
    arguments = server_arguments(model, key, port, more)
    with started(arguments, what, verbose, most_tokens=most_tokens) as url:
        yield url
