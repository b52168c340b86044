# SPDX-License-Identifier: Apache-2.0
"""What watching costs: the scheduler's time for a question, throughput with three viewers, and the
HTTP process's time for its history.

    python scripts/bench_console.py history --rows 200
    python scripts/bench_console.py question --model FOLDER --rows 200
    python scripts/bench_console.py viewers --url http://127.0.0.1:30000 --viewers 3

`question` starts an engine on the CPU, fills it with rows at their budget, and times in the
scheduler's process what a question keeps it from: taking it, answering, sending. `stock` is
SGLang's own question, whose answer dumps every server argument, with our part in it. `viewers`
loads a running server with and without viewers in turn; a viewer asks as the page does. `history`
needs no server: it times a reading, without the question, and an answer, and counts its memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

OUTPUT_TOKENS = 400
REPORT = "LONGFLOW_BENCH_FILE"


def run_scheduler_process(*args, **kwargs):
    """SGLang's entry point of a scheduler process, with a clock around its questions."""
    from sglang.srt.managers import scheduler as module
    from sglang.srt.managers.io_struct import GetInternalStateReq
    from sglang.srt.plugins import load_plugins

    load_plugins()
    stock = module.Scheduler.process_input_requests

    def process_input_requests(self, recv_reqs):
        asked = [req for req in recv_reqs if isinstance(req, GetInternalStateReq)]
        start = time.perf_counter()
        stock(self, recv_reqs)
        seconds = time.perf_counter() - start
        if asked and len(recv_reqs) == 1:
            kind = asked[0].rid or "stock"
            line = json.dumps([kind, len(self.running_batch.reqs), seconds * 1e6])
            with Path(os.environ[REPORT]).open("a") as out:
                out.write(line + "\n")

    module.Scheduler.process_input_requests = process_input_requests
    module.run_scheduler_process(*args, **kwargs)


def question(args: argparse.Namespace) -> None:
    """Median and 95th percentile, in microseconds, of either question."""
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.managers.io_struct import GetInternalStateReq

    from sglang_longflow.hooks.stats import OUR_QUESTION

    report = Path(tempfile.mkstemp(suffix=".jsonl")[1])
    os.environ[REPORT] = str(report)  # the scheduler's process inherits it

    class TimedEngine(Engine):
        run_scheduler_process_func = staticmethod(run_scheduler_process)

    engine = TimedEngine(
        model_path=args.model, device="cpu", dtype="float32", skip_tokenizer_init=True,
        kv_budget=48, max_total_tokens=args.rows * 96, max_running_requests=args.rows,
        log_level="error",
    )  # fmt: skip

    async def measure() -> None:
        manager = engine.tokenizer_manager
        params = {"temperature": 0, "max_new_tokens": 3000, "ignore_eos": True}
        ids = [[3 + (i * 7 + j) % 400 for j in range(40)] for i in range(args.rows)]
        work = asyncio.create_task(engine.async_generate(input_ids=ids, sampling_params=params))
        await asyncio.sleep(args.warm)
        for _ in range(args.questions):
            for rid in (OUR_QUESTION, None):
                await manager.get_internal_state_communicator(GetInternalStateReq(rid=rid))
        work.cancel()

    engine.loop.run_until_complete(measure())
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    for kind in (OUR_QUESTION, "stock"):
        found = sorted(us for name, _, us in lines if name == kind)
        rows = statistics.median(rows for name, rows, _ in lines if name == kind)
        print(
            f"{kind:9} {rows:g} rows, {len(found)} questions: median "
            f"{statistics.median(found):.0f} us, least {found[0]:.0f} us, "
            f"95% {found[int(len(found) * 0.95)]:.0f} us"
        )
    engine.shutdown()


def viewers(args: argparse.Namespace) -> None:
    """Output tokens per second of the same requests, with and without viewers in turn."""

    def post(number: int) -> None:
        body = {"input_ids": [3 + (number + j) % 400 for j in range(40)]}
        body["sampling_params"] = {"max_new_tokens": OUTPUT_TOKENS, "ignore_eos": True}
        request = urllib.request.Request(
            args.url + "/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request).read()

    def watch(stop: threading.Event) -> None:
        while not stop.wait(1):
            urllib.request.urlopen(args.url + "/longflow/stats").read()

    def turn(count: int) -> float:
        stop = threading.Event()
        watching = [threading.Thread(target=watch, args=(stop,)) for _ in range(count)]
        work = [threading.Thread(target=post, args=(i,)) for i in range(args.requests)]
        start = time.perf_counter()
        for thread in watching + work:
            thread.start()
        for thread in work:
            thread.join()
        seconds = time.perf_counter() - start
        stop.set()
        return args.requests * OUTPUT_TOKENS / seconds

    turn(0)
    speeds: dict[int, list[float]] = {0: [], args.viewers: []}
    for repeat in range(args.repeats):
        for count in sorted(speeds, reverse=repeat % 2 == 1):
            speeds[count].append(turn(count))
    for count, found in speeds.items():
        text = ", ".join(f"{speed:.0f}" for speed in found)
        print(f"{count} viewers: median {statistics.median(found):.1f} tokens/s ({text})")


def history(args: argparse.Namespace) -> None:
    """Times in microseconds, and the memory of a day in which every minute hits most buckets."""
    import random
    import tracemalloc
    from types import SimpleNamespace

    from prometheus_client import Histogram

    from sglang_longflow.hooks.metrics import local_counts
    from sglang_longflow.monitor.history import History, Reading
    from sglang_longflow.monitor.snapshots import merge

    bounds = [0.002 * 1.6**i for i in range(23)]
    first = Histogram("first", "-", ["is_streaming"], buckets=bounds)
    inter = Histogram("inter", "-", ["model_name"], buckets=bounds)
    manager = SimpleNamespace(
        enable_metrics=True,
        metrics_collector=SimpleNamespace(
            histogram_time_to_first_token=first, histogram_inter_token_latency=inter
        ),
    )
    state = {
        "settings": {}, "prefilling": [], "queue": [], "tree_held_tokens": 0, "queued_requests": 0,
        "pool": {"total_tokens": 30000, "available_tokens": 1000, "evictable_tokens": 10},
        "requests": [[f"{i:032d}", 3000, 96, 96, "longflow", 96, 0] for i in range(args.rows)],
        "paused": False, "stalled_s": 0.0,
    }  # fmt: skip
    tracemalloc.start()
    kept = History()
    times = []
    readings = 24 * 720
    for i in range(readings):
        for _ in range(4):
            first.labels("true").observe(random.choice(bounds))
            inter.labels("m").observe(random.choice(bounds))
        counters = {"decoded_tokens": 2000 * i, "overwritten_tokens": 1900 * i}
        merged = merge([{**state, "counters": counters, "uptime_s": 5.0 * i}], {})
        if i == readings - 2000:  # timed without the tracing
            print(f"memory of {i} readings: {tracemalloc.get_traced_memory()[0] / 2**20:.1f} MiB")
            tracemalloc.stop()
        start = time.perf_counter()
        kept.record(5.0 * i, Reading.of(merged), local_counts(manager))
        times.append((time.perf_counter() - start) * 1e6)
    found = sorted(times[-2000:])
    print(f"reading: median {statistics.median(found):.0f} us, 95% {found[1900]:.0f} us")
    for span_s, step_s in ((600, 5), (3600, 30), (86400, 600)):
        spent = []
        for _ in range(20):
            start = time.perf_counter()
            body = json.dumps(kept.table(5.0 * readings, span_s, step_s))
            spent.append((time.perf_counter() - start) * 1e6)
        print(f"{span_s} s: median {statistics.median(spent):.0f} us, {len(body):,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("question")
    part.add_argument("--model", required=True)
    part.add_argument("--rows", type=int, default=200)
    part.add_argument("--questions", type=int, default=60)
    part.add_argument("--warm", type=float, default=20, help="seconds until all rows are full")
    part = parts.add_parser("history")
    part.add_argument("--rows", type=int, default=200)
    part = parts.add_parser("viewers")
    part.add_argument("--url", required=True)
    part.add_argument("--viewers", type=int, default=3)
    part.add_argument("--requests", type=int, default=16)
    part.add_argument("--repeats", type=int, default=6)
    args = parser.parse_args()
    {"question": question, "history": history, "viewers": viewers}[args.part](args)


if __name__ == "__main__":
    main()
