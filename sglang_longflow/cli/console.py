# SPDX-License-Identifier: Apache-2.0
"""``longflow console``: the command line of `monitor.relay`."""

from __future__ import annotations

import argparse
import contextlib
import sys

from sglang_longflow.errors import ConfigError, KeyWanted, NoAnswer, WatchError
from sglang_longflow.monitor.client import DEFAULT_URL, base_url, fetch_stats

DEFAULT_PORT = "30080"
LOOK_TIMEOUT_S = 3.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``longflow console``."""
    add = parser.add_argument
    add("--url", default=DEFAULT_URL, help="the server, default %(default)s")
    add("--port", default=DEFAULT_PORT, help="of the page on 127.0.0.1, default %(default)s")


def problem_with(url: str) -> str:
    """Why the page will show nothing yet; empty if the server answers, or only wants a key."""
    try:
        fetch_stats(url, timeout_s=LOOK_TIMEOUT_S)
    except NoAnswer as error:
        return f"it does not answer yet; the page goes on asking ({error})"
    except KeyWanted:  # the page asks for it
        return ""
    except WatchError as error:
        return str(error)
    return ""


def run(args: argparse.Namespace) -> int:
    """Serve the page on this machine until Ctrl+C."""
    from sglang_longflow.monitor.relay import Relay

    url = base_url(args.url)
    if not args.port.isdecimal() or not 0 <= int(args.port) <= 65535:
        raise ConfigError(f"port={args.port!r}: expected a number from 0 (any free one) to 65535")
    try:
        relay = Relay(url, int(args.port))
    except OSError as error:
        raise ConfigError(f"port={args.port}: {error.strerror}; choose another --port") from error
    with relay, contextlib.suppress(KeyboardInterrupt):
        print(f"console of {url}: http://127.0.0.1:{relay.server_port}/longflow", flush=True)
        if problem := problem_with(url):
            print(f"note: {problem}", file=sys.stderr, flush=True)
        relay.serve_forever()
    return 0
