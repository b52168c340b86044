"""``longflow top``: a running server, once an interval."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from typing import Any

from sglang_longflow.errors import ConfigError, WatchError
from sglang_longflow.stats_client import DEFAULT_URL, base_url, fetch_stats

MIN_INTERVAL_S = 0.2
MAX_INTERVAL_S = 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``longflow top``."""
    add = parser.add_argument
    add("--url", default=DEFAULT_URL, help="the server, default %(default)s")
    add("--api-key", help="the server's --api-key, if it has one")
    add("--interval", default="1", help="seconds between two looks, default %(default)s")
    add("--once", action="store_true", help="one look, then end")
    add("--json", action="store_true", help="one JSON object a line instead of a view")


def rates(stats: dict[str, Any], before: dict[str, Any] | None) -> dict[str, float] | None:
    """Tokens a second between two looks; None without a time between them, or after a restart."""
    seconds = stats["uptime_s"] - before["uptime_s"] if before else 0.0
    if before is None or seconds <= 0:
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
    """Watch until Ctrl+C; 1 where the server cannot be watched at the start, or goes in text."""
    url, interval_s = base_url(args.url), _interval(args.interval)
    stats = fetch_stats(url, args.api_key)
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
    from sglang_longflow import top_view

    before = None
    while True:
        speed = rates(stats, before)
        if args.json:
            print(json.dumps({**stats, "rates": speed}), flush=True)
        elif args.once:
            top_view.print_once(stats)
        else:
            print(f"{time.strftime('%H:%M:%S')} {top_view.line(stats, speed)}", flush=True)
        if args.once:
            return
        time.sleep(interval_s)
        before, stats = stats, fetch_stats(url, args.api_key)


def _watch(args: argparse.Namespace, url: str, interval_s: float, stats: dict[str, Any]) -> None:
    from rich.live import Live

    from sglang_longflow import top_view

    before, speed, problem = None, None, ""
    with Live(screen=True, auto_refresh=False) as live:
        while True:
            speed = rates(stats, before) or speed
            live.update(top_view.view(stats, speed, url, problem, live.console.height))
            live.refresh()
            time.sleep(interval_s)
            try:
                before, stats = stats, fetch_stats(url, args.api_key)
                problem = ""
            except WatchError as error:
                problem = problem or f"since {time.strftime('%H:%M:%S')}: {error}"
                speed = None
