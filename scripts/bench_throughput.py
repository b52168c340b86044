# SPDX-License-Identifier: Apache-2.0
"""Output tokens per second under a queue that never empties: stock SGLang and a budget server.

Each system is a real `launch_server` with dummy weights of a known geometry and the same pool:
`longflow`, `longflow-peak` and `longflow-novel` have a budget and that policy, `stock` runs without
the plugin, `inert` with the plugin and no budget.
Points (see throughput_points.yaml) are measured one after the other, each on one system after the
other; idle systems only hold their memory. A point sends all its requests at once and counts the
tokens that arrive between `warm` and `warm + seconds`. What is still running then is aborted.

Long generations take minutes to spread out, so the first `wave` requests start as if they had been
running: `stagger: prompt` gives each a random share of its output as prompt (what full KV would
hold), `stagger: output` only shortens its output (a row at its budget holds no more).

    python scripts/bench_throughput.py --geometry qwen3-1.7b --pool 290000 --only A,B --out DIR
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import random
import re
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from bench_geometries import GEOMETRIES, model_folder, stock_environment

from sglang_longflow.measure.throughput.streams import (
    Stream,
    ask,
    flush_cache,
    latencies,
    percentile,
    session_for,
    tokens_at,
)
from sglang_longflow.server.preflight import free_port
from sglang_longflow.server.process import Server

POLICIES = ("longflow", "longflow-peak", "longflow-novel")
SYSTEMS = (*POLICIES, "stock", "inert")
#: Tokens in one message of the stream; inter-token latencies are means over as many.
STREAM_INTERVAL = 16
_DECODE = re.compile(
    r"Decode batch.*?#running-req: (\d+), #token: (\d+), token usage: ([\d.]+)"
    r".*?graph: (True|False), gen throughput \(token/s\): ([\d.]+), #queue-req: (\d+)"
)
_RETRACTED = re.compile(r"KV cache pool is full.*?#retracted_reqs: (\d+)")
_POOL = re.compile(r"max_total_num_tokens=(\d+)")


@dataclass(frozen=True)
class Point:
    """One workload on one system; lengths in tokens, times in seconds.

    Attributes
    ----------
    budget : int
        Of every request; 0 is full KV (always so without a budget server).
    requests : int
        Sent at once.
    wave : int
        How many of them start as if they had been running (see the module's docstring).
    """

    name: str
    system: str
    input: int
    output: int
    requests: int
    warm: float
    seconds: float
    budget: int = 0
    wave: int = 0
    stagger: str = "output"


def load_points(file: Path, only: list[str], systems: list[str]) -> list[Point]:
    """Points of a YAML file: what both systems share, and a section for each."""
    points = []
    for name, shared in yaml.safe_load(file.read_text()).items():
        if only and name not in only:
            continue
        common = {key: value for key, value in shared.items() if key not in SYSTEMS}
        for system in systems:
            if system in shared:
                points.append(Point(name=name, system=system, **{**common, **shared[system]}))
    return points


class Log:
    """The scheduler's lines in the server's output, with the time they arrived.

    Attributes
    ----------
    pool : int
        Tokens of the pool as the scheduler made it; 0 until it says so.
    """

    def __init__(self, file: Path | None = None):
        self.pool = 0
        self.decode: list[dict] = []
        self.retracted: list[tuple[float, int]] = []
        self._rest = b""
        self._file = file.open("wb") if file else None

    def write(self, chunk: bytes) -> None:
        if self._file:
            self._file.write(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            if found := _DECODE.search(text):
                running, tokens, usage, graph, rate, queued = found.groups()
                self.decode.append(
                    dict(
                        time=time.monotonic(),
                        running=int(running),
                        pool_tokens=int(tokens),
                        usage=float(usage),
                        cuda_graph=graph == "True",
                        tokens_per_s=float(rate),
                        queued=int(queued),
                    )
                )
            elif found := _RETRACTED.search(text):
                self.retracted.append((time.monotonic(), int(found.group(1))))
            elif found := _POOL.search(text):
                self.pool = int(found.group(1))

    def flush(self) -> None:
        if self._file:
            self._file.flush()


def bodies(point: Point, vocab_size: int, seed: int) -> list[dict]:
    """The requests of a point, the staggered wave first."""
    generator = random.Random(seed)
    made = []
    for index in range(point.requests):
        done = int(generator.random() * point.output) if index < point.wave else 0
        length = point.input + (done if point.stagger == "prompt" else 0)
        ids = [generator.randrange(10, vocab_size - 10) for _ in range(length)]
        # No ignore_eos: SGLang would admit by whole lengths, which no real request tells it.
        sampling: dict = dict(temperature=0, max_new_tokens=point.output - done)
        if point.system in POLICIES:
            sampling["custom_params"] = {"kv_budget": point.budget}
        made.append(dict(input_ids=ids, sampling_params=sampling, stream=True))
    return made


async def drive(url: str, point: Point, requests: list[dict]) -> tuple[list[Stream], float]:
    """Send all requests at once; returns the streams and when the first was sent."""
    streams = [Stream() for _ in requests]
    began = time.monotonic()
    async with session_for() as session:
        tasks = [
            asyncio.create_task(ask(session, url, body, stream))
            for body, stream in zip(requests, streams, strict=True)
        ]
        _, unfinished = await asyncio.wait(tasks, timeout=point.warm + point.seconds)
        ended = time.monotonic()
        # Sessions of their own: the server closes connections that have been idle for some seconds,
        # and a client busy with a thousand streams may not have seen it.
        async with (
            session_for() as control,
            control.post(f"{url}/abort_request", json={"abort_all": True}) as response,
        ):
            response.raise_for_status()
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
    async with session_for() as control:
        await flush_cache(control, url)
    for stream in streams:
        stream.messages = [message for message in stream.messages if message[0] <= ended]
    return streams, began


def summarise(point: Point, streams: list[Stream], began: float, log: Log) -> dict:
    ended = max((when for stream in streams for when, _ in stream.messages), default=began)
    start = began + point.warm
    if ended <= start:
        problems = [s.problem for s in streams if s.problem]
        raise SystemExit(f"{point.name}/{point.system}: no token after the warm-up: {problems[:3]}")
    samples = [s for s in log.decode if start <= s["time"] <= ended]
    per_token = latencies(streams, start, ended)
    first = sorted(s.messages[0][0] - s.sent for s in streams if s.messages)
    produced = sum(tokens_at(s, ended) - tokens_at(s, start) for s in streams)
    window = ended - start

    def mean(name: str) -> float | None:
        return round(statistics.fmean(s[name] for s in samples), 3) if samples else None

    return {
        **asdict(point),
        "window_s": round(window, 2),
        "output_tokens": produced,
        "output_tokens_per_s": round(produced / window, 1),
        "finished_requests": sum(s.finished for s in streams),
        "running_peak": max((s["running"] for s in samples), default=None),
        "running_mean": mean("running"),
        "pool_tokens_mean": mean("pool_tokens"),
        "queue_never_empty": all(s["queued"] for s in samples),
        "cuda_graph_share": mean("cuda_graph"),
        "retracted_requests": sum(n for when, n in log.retracted if began <= when <= ended),
        "inter_token_ms_mean": round(1e3 * statistics.fmean(per_token), 3) if per_token else None,
        "inter_token_ms_p99": round(1e3 * percentile(per_token, 0.99), 3) if per_token else None,
        "first_token_s_median": round(statistics.median(first), 3) if first else None,
        "first_token_s_last": round(first[-1], 3) if first else None,
        "problems": [s.problem for s in streams if s.problem][:3],
    }


def pool_of(system: str, args: argparse.Namespace) -> int:
    """Tokens of a system's pool; 0 leaves it to SGLang."""
    return args.pool_of.get(system, args.pool)


def check_pool(system: str, asked: int, made: int) -> None:
    """Refuse a smaller pool than `asked` tokens: SGLang takes what memory is left, and goes on."""
    if made < asked:
        raise SystemExit(
            f"{system}: its pool holds {made:,} tokens, not {asked:,}: the servers that run at "
            "once do not fit this device. Name fewer --systems, or smaller pools with --pool-of"
        )


def server_of(system: str, args: argparse.Namespace, points: list[Point]) -> tuple[Server, Log]:
    port = free_port("127.0.0.1", 31000 + 100 * SYSTEMS.index(system))
    arguments = [
        f"--model-path={model_folder(args.geometry)}",
        "--load-format=dummy",
        "--skip-tokenizer-init",
        f"--port={port}",
        f"--nccl-port={free_port('127.0.0.1', port + 1)}",
        "--incremental-streaming-output",
        f"--stream-interval={STREAM_INTERVAL}",
        "--random-seed=1",
        *([f"--max-total-tokens={pool}"] if (pool := pool_of(system, args)) else []),
        *args.server,
    ]
    environment = None
    if system in POLICIES:
        budget = max(p.budget for p in points if p.system == system)
        arguments += [f"--kv-policy={system}", f"--kv-budget={budget}", "--kv-budget-allow-full"]
    elif system == "stock":
        environment = stock_environment(args.server)
    log = Log(args.out / f"{system}.log" if args.out else None)
    return Server(arguments, f"http://127.0.0.1:{port}", log, environment), log


def run(args: argparse.Namespace) -> list[dict]:
    points = load_points(args.points, args.only, args.systems)
    if not points:
        raise SystemExit(f"--only={','.join(args.only)}: no such point in {args.points}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    vocab_size = GEOMETRIES[args.geometry]["vocab_size"]
    systems = sorted({point.system for point in points})
    servers: dict[str, tuple[Server, Log]] = {}
    results = []
    try:
        for system in systems:
            servers[system] = server_of(system, args, points)
        for system in systems:
            server, log = servers[system]
            server.wait_ready(args.start_timeout)
            check_pool(system, pool_of(system, args), log.pool)
            print(f"{system} is ready after {time.monotonic() - args.began:.0f} s", flush=True)
        for point in points:
            left = args.stop_after - (time.monotonic() - args.began) if args.stop_after else None
            if left is not None and left < point.warm + point.seconds + 5:
                print(f"{point.name}/{point.system}: left out, no time", flush=True)
                continue
            server, log = servers[point.system]
            requests = bodies(point, vocab_size, args.seed)
            streams, began = asyncio.run(drive(server.url, point, requests))
            result = {
                "geometry": args.geometry,
                "pool": pool_of(point.system, args),
                **summarise(point, streams, began, log),
                "server_arguments": args.server,
            }
            results.append(result)
            print(json.dumps(result), flush=True)
            if args.out:
                save(args.out, point, result, log, began)
    finally:
        for server, _ in servers.values():
            server.kill()
    return results


def save(folder: Path, point: Point, result: dict, log: Log, began: float) -> None:
    """NAME-SYSTEM.json with the numbers, NAME-SYSTEM.csv with the scheduler's own lines, and
    NAME-SYSTEM-retracted.csv with what it retracted."""
    name = f"{point.name}-{point.system}"
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    samples = [s for s in log.decode if s["time"] >= began]
    with (folder / f"{name}.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, list(samples[0]) if samples else ["time"])
        writer.writeheader()
        for sample in samples:
            writer.writerow({**sample, "time": round(sample["time"] - began, 2)})
    gone = [(round(when - began, 2), count) for when, count in log.retracted if when >= began]
    if gone:
        with (folder / f"{name}-retracted.csv").open("w", newline="") as out:
            csv.writer(out).writerows([("time", "requests"), *gone])


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def sizes(text: str) -> dict[str, int]:
    """``stock=1000,inert=1000`` as a dict."""
    pairs = (part.split("=") for part in names(text))
    found = {system: int(tokens) for system, tokens in pairs}
    if unknown := set(found) - set(SYSTEMS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: no such system")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--geometry", choices=GEOMETRIES, required=True)
    add("--pool", type=int, default=0, help="KV pool in tokens; default: SGLang's own")
    add("--pool-of", type=sizes, default={}, help="other pools, e.g. stock=110000,inert=110000")
    default = Path(__file__).with_name("throughput_points.yaml")
    add("--points", type=Path, default=default, help="YAML file")
    add("--only", type=names, default=[], help="names of points, with commas; default: all")
    add("--systems", type=names, default=list(SYSTEMS), help="default: all that a point names")
    add("--start-timeout", type=float, default=420)
    add("--stop-after", type=float, default=0, help="seconds after which no point is begun")
    add("--seed", type=int, default=1)
    add("--out", type=Path, help="folder for the results")
    add("server", nargs="*", help="more server arguments, after --")
    args = parser.parse_args()
    if unknown := set(args.systems) - set(SYSTEMS):
        parser.error(
            f"--systems {','.join(sorted(unknown))}: expected some of {', '.join(SYSTEMS)}"
        )
    args.began = time.monotonic()
    results = run(args)
    return 1 if any(result["problems"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
