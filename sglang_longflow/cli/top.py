# SPDX-License-Identifier: Apache-2.0
"""``longflow top``: a running server, once an interval."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import deque
from typing import Any

from sglang_longflow.errors import ConfigError, NoAnswer, WatchError
from sglang_longflow.monitor.client import DEFAULT_URL, base_url, fetch_stats
from sglang_longflow.monitor.request_order import SORTS
from sglang_longflow.server.api_key import key_of_environment
from sglang_longflow.settings.nearest import nearest

MIN_INTERVAL_S = 0.2
MAX_INTERVAL_S = 3600.0
HISTORY_LOOKS = 300
#: So long without an answer, a log of lines ends: the server is gone.
GONE_AFTER_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``longflow top``."""
    add = parser.add_argument
    add("--url", default=DEFAULT_URL, help="the server, default %(default)s")
    add("--api-key", help="the server's --api-key, if it has one; default: $LONGFLOW_API_KEY")
    add("--interval", default="1", help="seconds between two looks, default %(default)s")
    add("--once", action="store_true", help="one look, then end")
    add("--json", action="store_true", help="one JSON object per line instead of a view")
    add(
        "--sort",
        default="arrival",
        help=f"order of the requests: {', '.join(SORTS)}; on a screen also by its first letter",
    )


def rates(stats: dict[str, Any], before: dict[str, Any] | None) -> dict[str, float] | None:
    """Tokens a second between two looks; None without a time between them, or after a restart."""
    if before is None or before["uptime_s"] is None or stats["uptime_s"] is None:
        return None
    seconds = stats["uptime_s"] - before["uptime_s"]
    if seconds <= 0:
        return None
    return {
        f"{name}_per_s": (stats["counters"][name] - before["counters"][name]) / seconds
        for name in ("decoded_tokens", "overwritten_tokens")
    }


def _interval(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not MIN_INTERVAL_S <= seconds <= MAX_INTERVAL_S:
        raise ConfigError(
            f"interval={value!r}: expected seconds from {MIN_INTERVAL_S:g} to {MAX_INTERVAL_S:g}"
        )
    return seconds


def run(args: argparse.Namespace) -> int:
    """Watch until Ctrl+C; 1 if the server cannot be watched, or in text is gone for 30 s."""
    url, interval_s = base_url(args.url), _interval(args.interval)
    args.api_key = args.api_key or key_of_environment()
    if args.sort not in SORTS:
        raise ConfigError(
            f"sort={args.sort!r}: expected one of {', '.join(SORTS)}{nearest(args.sort, SORTS)}"
        )
    stats = fetch_stats(url, args.api_key, timeout_s=GONE_AFTER_S)
    try:
        if args.json or args.once or not sys.stdout.isatty():
            _print_lines(args, url, interval_s, stats)
        else:
            _watch(args, url, interval_s, stats)
    except KeyboardInterrupt:
        pass
    return 0


def _print_lines(
    args: argparse.Namespace, url: str, interval_s: float, stats: dict[str, Any]
) -> None:
    from sglang_longflow.monitor import terminal

    before = None
    while True:
        speed = rates(stats, before)
        if args.json:
            print(json.dumps({**stats, "rates": speed}), flush=True)
        elif args.once:
            terminal.print_once(stats, args.sort)
        else:
            print(f"{time.strftime('%H:%M:%S')} {terminal.line(stats, speed)}", flush=True)
        if args.once:
            return
        time.sleep(interval_s)
        before, stats = stats, _next(args, url, interval_s)


def _next(args: argparse.Namespace, url: str, interval_s: float) -> dict[str, Any]:
    """The next stats; a server that does not answer for a while is waited for, and told of."""
    since = time.monotonic()
    while True:
        try:
            return fetch_stats(url, args.api_key)
        except NoAnswer as error:
            if time.monotonic() - since >= GONE_AFTER_S:
                raise
            print(f"{time.strftime('%H:%M:%S')} no answer: {error}", file=sys.stderr, flush=True)
        time.sleep(min(interval_s, GONE_AFTER_S / 10))


def _watch(args: argparse.Namespace, url: str, interval_s: float, stats: dict[str, Any]) -> None:
    from rich.live import Live

    from sglang_longflow.monitor import terminal
    from sglang_longflow.monitor.keys import key_reader

    by_key = {key: name for name, (key, _) in SORTS.items()}
    before, speed, problem, silent_since = None, None, "", 0.0
    history: deque[float] = deque(maxlen=HISTORY_LOOKS)
    sort = args.sort
    with key_reader() as wait, Live(screen=True, auto_refresh=False) as live:
        while True:
            if not problem and (found := rates(stats, before)):
                speed = found
                history.append(found["decoded_tokens_per_s"])
            is_gone = bool(problem) and time.monotonic() - silent_since >= GONE_AFTER_S
            due = time.monotonic() + interval_s
            while True:
                size = live.console.size
                look = terminal.Look(size.width, size.height, sort, tuple(history))
                live.update(terminal.view(stats, speed, url, problem, is_gone, look), refresh=True)
                key = wait(due - time.monotonic())
                if key == "q":
                    return
                if not key and time.monotonic() >= due:
                    break
                sort = by_key.get(key, sort)
            try:
                before, stats = stats, fetch_stats(url, args.api_key)
                problem = ""
            except WatchError as error:
                if not problem:
                    problem = f"since {time.strftime('%H:%M:%S')}: {error}"
                    silent_since = time.monotonic()
                speed = None
