# SPDX-License-Identifier: Apache-2.0
"""What `longflow bench` does: throughput and latency against the budget, on real servers."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from sglang_longflow.client.http import first_port
from sglang_longflow.errors import ConfigError
from sglang_longflow.measure.extra import require_extra
from sglang_longflow.measure.out_folder import writable_folder
from sglang_longflow.measure.servers import refuse_servers, started
from sglang_longflow.measure.throughput import BASELINES, NONE
from sglang_longflow.measure.throughput.point import Result, Work, measure, require_accepted
from sglang_longflow.measure.throughput.report import draw, save, show, title_of
from sglang_longflow.measure.throughput.systems import (
    System,
    budget_system,
    get_json,
    refuse_own_flags,
    stock_system,
    vocabulary_of,
)
from sglang_longflow.measure.variants import (
    Variant,
    budget_text,
    parse_budget,
    parse_variant,
)
from sglang_longflow.monitor.client import activity
from sglang_longflow.server.api_key import key_of_environment
from sglang_longflow.server.pool_cap import tokens_for
from sglang_longflow.server.preflight import free_port
from sglang_longflow.server.progress import Bars, shared
from sglang_longflow.settings.device import cards
from sglang_longflow.settings.nearest import nearest

LINE_INTERVAL_S = 10.0


class PointProgress(AbstractContextManager["PointProgress"]):
    """All points together, with the time that is left for them; a line every 10 s in a log."""

    def __init__(self, points: int, tokens_per_point: int):
        self.points, self.each = points, tokens_per_point
        self.done_points, self.measured_s = 0, 0.0
        self.title, self._began = "", 0.0
        self._bars = Bars([("", points * tokens_per_point)], line_every_s=LINE_INTERVAL_S)

    def begin(self, title: str) -> Callable[[int], None]:
        """A point starts; what is returned takes its tokens so far."""
        self.title, self._began = title, time.monotonic()
        self._bars.hold()
        return self._update

    def end(self) -> None:
        self.measured_s += time.monotonic() - self._began
        self.done_points += 1

    def left_s(self, tokens: int, seconds: float) -> float | None:
        """Seconds for the tokens that are left at the rate so far; None before the first one."""
        done = self.done_points * self.each + tokens
        if not done:
            return None
        return (self.measured_s + seconds) / done * (self.points * self.each - done)

    def _update(self, tokens: int) -> None:
        seconds = time.monotonic() - self._began
        left = self.left_s(tokens, seconds)
        rest = "" if left is None else f"about {left:,.0f} s left for all"
        text = f"{self.title}: {tokens:,} of {self.each:,} tokens"
        self._bars.show(0, self.done_points * self.each + tokens, text, rest)
        rate = tokens / seconds if seconds else 0.0
        self._bars.say(f"  {text}, {rate:,.1f} a second" + (f", {rest}" if rest else ""))

    def __enter__(self) -> PointProgress:
        self._bars.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.__exit__(*exc)


class Bench:
    """What has been measured; written after every point."""

    def __init__(self, args: argparse.Namespace, work: Work, variant: Variant, points: int):
        self.args, self.work, self.variant = args, work, variant
        self.results: list[Result] = []
        self.settings: dict[str, Any] = {
            "model": args.model,
            "url": args.url,
            "policy": variant.name,
            "requests": work.requests,
            "concurrency": work.concurrency or work.requests,
            "input_tokens": work.input,
            "output_tokens": work.output,
            "seed": work.seed,
            "servers": {},
        }
        self.progress = PointProgress(points, work.requests * work.output)

    def point(self, system: str, url: str, budget: int, custom_params: dict[str, Any]) -> None:
        take = self.progress.begin(f"{system}, budget {budget_text(budget)}")
        key = self.args.api_key

        def at_work() -> str:
            return f"  {self.progress.title}: {activity(url, key)}"

        with shared().sign_of_life(at_work):
            found = measure(system, url, budget, self.work, custom_params, take, key)
        self.progress.end()
        self.results.append(found)
        save(self.args.out, self.settings, self.results)

    def params(self, budget: int) -> dict[str, Any]:
        """What a request for a budget sends."""
        return {"kv_budget": budget, **({"kv_policy": self.variant.policy} if budget else {})}

    def on(self, system: System) -> dict[str, Any]:
        """Measure a server of our own; returns its ``GET /server_info``."""
        work = self.work
        most = tokens_for(work.concurrency or work.requests, work.input + work.output)
        with started(
            *(system.arguments, system.name, self.args.verbose, system.environment),
            most_tokens=most,
        ) as url:
            info: dict[str, Any] = get_json(f"{url}/server_info")
            self.settings["servers"][system.name] = {
                "arguments": system.arguments,
                "pool_tokens": info.get("max_total_num_tokens"),
                "version": info.get("version"),
                "device": device_of(info, is_ours=True),
            }
            for budget in system.budgets:
                known = system.name not in BASELINES
                self.point(system.name, url, budget, self.params(budget) if known else {})
        return info


def device_of(info: dict[str, Any], is_ours: bool) -> str | None:
    """Device of a server by its ``/server_info``: of one on this machine the card's name."""
    device: str | None = info.get("device")
    if is_ours and device == "cuda" and (names := {card.name for card in cards()}):
        return ", ".join(sorted(names))
    return device


def _check(args: argparse.Namespace) -> list[int]:
    """The budgets in tokens, 0 for full KV; raises for what can be told before anything slow."""
    for name in ("requests", "input_tokens", "output_tokens", "stream_interval"):
        if getattr(args, name) < 1:
            raise ConfigError(f"{name}={getattr(args, name)}: expected at least 1")
    if args.concurrency < 0:
        raise ConfigError(f"concurrency={args.concurrency}: expected at least 1, or 0 for all")
    if args.vocab_size is not None and args.vocab_size < 10:
        raise ConfigError(f"vocab_size={args.vocab_size}: expected at least 10")
    if not args.budgets:
        raise ConfigError("budgets='': expected tokens, percentages such as 20%, or full")
    total = args.input_tokens + args.output_tokens
    budgets = list(dict.fromkeys(parse_budget(text, total) for text in args.budgets))
    if args.url is not None:
        if not args.url.startswith(("http://", "https://")):
            raise ConfigError(f"url={args.url!r}: expected http://HOST:PORT or https://...")
        if args.server:
            raise ConfigError(
                f"server arguments {' '.join(args.server)!r}: only with --model; a running server "
                f"keeps its own"
            )
        return budgets
    for name in args.baselines:
        if name not in (*BASELINES, NONE):
            raise ConfigError(
                f"baselines={name!r}: expected some of {', '.join(BASELINES)}, {NONE}"
                f"{nearest(name, (*BASELINES, NONE))}"
            )
    refuse_own_flags(args.server)
    refuse_servers(args.model, [args.policy], args.server, "policy", budgets, total)
    return budgets


def _on_running_server(bench: Bench, budgets: list[int]) -> None:
    args = bench.args
    info = get_json(f"{args.url}/server_info", args.api_key)
    # A server without the plugin ignores what is asked of it; then only full KV has a meaning.
    has_plugin = any("longflow" in state for state in info.get("internal_states") or [])
    if not has_plugin and any(budgets):
        raise ConfigError(
            f"budgets={max(budgets)}: {args.url} runs without --kv-budget; it can only be measured "
            f"with --budgets full"
        )
    bench.settings["servers"]["server"] = {
        "pool_tokens": info.get("max_total_num_tokens"),
        "version": info.get("version"),
        "model": info.get("model_path"),
        "device": device_of(info, is_ours=False),
    }
    params = {budget: bench.params(budget) if has_plugin else {} for budget in budgets}
    points = [(f"server, budget {budget_text(n)}", params[n]) for n in budgets]
    require_accepted(args.url, bench.work.warm_up_prompt()[:1], points, args.api_key)
    for budget in budgets:
        bench.point("server", args.url, budget, params[budget])


def _on_own_servers(bench: Bench, budgets: list[int]) -> None:
    args = bench.args

    def port() -> int:
        return free_port("127.0.0.1", first_port())

    shape = (args.stream_interval, args.server)
    # One after the other: each has the machine for itself. The first one tells what a budget
    # server ends with, for the baseline under the same constraints.
    info = bench.on(budget_system(args.model, port(), bench.variant, budgets, *shape))
    for name in BASELINES:
        if name in args.baselines:
            bench.on(stock_system(name, args.model, port(), *shape, info))


def run(args: argparse.Namespace) -> int:
    """Measure every point, then write and print the tables."""
    budgets = _check(args)
    if args.plot:
        require_extra("matplotlib", "plot=True", "add --no-plot")
    variant = parse_variant(args.policy, "policy")
    args.url = args.url.rstrip("/") if args.url else None
    if args.url:  # servers of our own have no key
        args.api_key = args.api_key or key_of_environment()
    model = args.model or get_json(f"{args.url}/model_info", args.api_key)["model_path"]
    vocabulary = args.vocab_size or vocabulary_of(model)
    work = Work(
        *(args.requests, args.concurrency, args.input_tokens, args.output_tokens),
        vocabulary,
        args.seed,
    )
    writable_folder(args.out)
    baselines = [] if args.url else [name for name in BASELINES if name in args.baselines]
    # What is measured is kept: SIGTERM ends the blocks below like Ctrl+C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    bench = Bench(args, work, variant, len(budgets) + len(baselines))
    shared().say(
        f"{work.requests:,} requests of {work.input:,} + {work.output:,} tokens; budgets "
        f"{', '.join(map(budget_text, budgets))}"
        + (f"; baselines {', '.join(baselines)}" if baselines else "")
    )
    with bench.progress:
        (_on_running_server if args.url else _on_own_servers)(bench, budgets)
    if args.plot:
        draw(bench.results, args.out / "bench.png", title_of(bench.settings))
    show(bench.results, bench.settings)
    print(f"written to {args.out}: bench.csv, bench.json{', bench.png' if args.plot else ''}")
    return 0
