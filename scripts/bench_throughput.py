"""Output tokens a second of one real server under a queue that never empties; JSON and CSV.

Starts `launch_server` with a dummy model of a known geometry, sends requests of fixed input and
output length, and reads tokens from the stream and the scheduler's state from the server's own
log. With --budget the plugin is loaded; without it the server is stock SGLang with the plugin kept
out. --seconds ends a run that would take too long: what was running then is cancelled, and the
numbers are those of the window from --warm on.

    python scripts/bench_throughput.py --geometry qwen3-1.7b --pool 290000 --input 512 \\
        --output 16384 --requests 128 [--budget 3200] [--seconds 240 --warm 90] --out DIR
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import random
import re
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from sglang_longflow.preflight import free_port
from sglang_longflow.supervise import Server

_QWEN3 = dict(
    model_type="qwen3",
    architectures=["Qwen3ForCausalLM"],
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151936,
    max_position_embeddings=40960,
    rope_theta=1000000,
    rms_norm_eps=1e-6,
)
#: Hugging Face configurations; weights are random, so only sizes matter.
GEOMETRIES = {
    "qwen3-1.7b": dict(
        _QWEN3,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        tie_word_embeddings=True,
    ),
    "qwen3-8b": dict(
        _QWEN3,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        tie_word_embeddings=False,
    ),
    "qwen2.5-math-7b": dict(
        model_type="qwen2",
        architectures=["Qwen2ForCausalLM"],
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        tie_word_embeddings=False,
        max_position_embeddings=4096,
        rope_theta=10000,
        rms_norm_eps=1e-6,
    ),
    "tiny": dict(
        _QWEN3,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=512,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        rope_theta=10000,
    ),
}
#: Tokens in one message of the stream; inter-token latencies are means over as many.
STREAM_INTERVAL = 16
_DECODE = re.compile(
    r"Decode batch.*?#running-req: (\d+), #token: (\d+), token usage: ([\d.]+)"
    r".*?graph: (True|False), gen throughput \(token/s\): ([\d.]+), #queue-req: (\d+)"
)
_RETRACTED = re.compile(r"KV cache pool is full.*?#retracted_reqs: (\d+)")


@dataclass
class Stream:
    """One request as it comes in: (time, tokens so far) of every message."""

    sent: float = 0.0
    messages: list[tuple[float, int]] = field(default_factory=list)
    finished: bool = False
    problem: str = ""


class Log:
    """The scheduler's lines in the server's output, with the time they arrived."""

    def __init__(self):
        self.decode: list[dict] = []
        self.retracted = 0
        self._rest = b""

    def write(self, chunk: bytes) -> None:
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
                self.retracted += int(found.group(1))

    def flush(self) -> None:
        pass


async def ask(session, url: str, body: dict, stream: Stream) -> None:
    stream.sent = time.monotonic()
    try:
        async with session.post(f"{url}/generate", json=body) as response:
            if response.status != 200:
                stream.problem = f"{response.status}: {(await response.text())[:200]}"
                return
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                meta = json.loads(line[6:])["meta_info"]
                stream.messages.append((time.monotonic(), meta["completion_tokens"]))
                stream.finished = meta["finish_reason"] is not None
    except aiohttp.ClientError as error:
        stream.problem = f"{type(error).__name__}: {error}"


async def drive(url: str, args: argparse.Namespace, vocab_size: int) -> tuple[list[Stream], float]:
    """Send all requests at once; returns the streams and when the first was sent."""
    generator = random.Random(args.seed)
    streams = [Stream() for _ in range(args.requests)]
    limit = aiohttp.TCPConnector(limit=0)
    began = time.monotonic()
    # Lines hold all tokens so far: larger than aiohttp's default buffer.
    async with aiohttp.ClientSession(
        connector=limit, timeout=aiohttp.ClientTimeout(total=None), read_bufsize=1 << 22
    ) as session:
        tasks = []
        for stream in streams:
            ids = [generator.randrange(10, vocab_size - 10) for _ in range(args.input)]
            sampling = dict(temperature=0, max_new_tokens=args.output, ignore_eos=True)
            body = dict(input_ids=ids, sampling_params=sampling, stream=True)
            tasks.append(asyncio.create_task(ask(session, url, body, stream)))
        _, unfinished = await asyncio.wait(tasks, timeout=args.seconds or None)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
    return streams, began


def tokens_at(stream: Stream, moment: float) -> int:
    """Tokens that had arrived by `moment`."""
    return max((count for when, count in stream.messages if when <= moment), default=0)


def latencies(streams: list[Stream], start: float, end: float) -> list[float]:
    """Seconds a token of every message that arrived in the window."""
    found = []
    for stream in streams:
        for (t0, n0), (t1, n1) in zip(stream.messages, stream.messages[1:]):
            if start <= t1 <= end and n1 > n0:
                found.append((t1 - t0) / (n1 - n0))
    return sorted(found)


def summarise(args, streams: list[Stream], began: float, log: Log) -> dict:
    ended = max(when for stream in streams for when, _ in stream.messages)
    start = began + args.warm
    samples = [s for s in log.decode if start <= s["time"] <= ended]
    per_token = latencies(streams, start, ended)
    first = sorted(s.messages[0][0] - s.sent for s in streams if s.messages)
    produced = sum(tokens_at(s, ended) - tokens_at(s, start) for s in streams)
    running = [s["running"] for s in samples]
    return {
        "geometry": args.geometry,
        "budget": args.budget,
        "input": args.input,
        "output": args.output,
        "requests": args.requests,
        "pool": args.pool,
        "server_arguments": args.server,
        "window_s": round(ended - start, 2),
        "whole_run": not args.seconds or all(s.finished for s in streams),
        "output_tokens": produced,
        "output_tokens_per_s": round(produced / (ended - start), 1),
        "finished_requests": sum(s.finished for s in streams),
        "running_peak": max(running, default=0),
        "running_mean": round(statistics.fmean(running), 1) if running else 0,
        "pool_tokens_mean": round(statistics.fmean(s["pool_tokens"] for s in samples))
        if samples
        else 0,
        "queue_never_empty": all(s["queued"] for s in samples),
        "cuda_graph_share": round(statistics.fmean(s["cuda_graph"] for s in samples), 3)
        if samples
        else None,
        "retracted_requests": log.retracted,
        "inter_token_ms_mean": round(1e3 * statistics.fmean(per_token), 3) if per_token else None,
        "inter_token_ms_p99": round(1e3 * per_token[int(0.99 * len(per_token))], 3)
        if per_token
        else None,
        "first_token_s_median": round(statistics.median(first), 3) if first else None,
        "problems": [s.problem for s in streams if s.problem][:3],
    }


def model_folder(geometry: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"{geometry}-"))
    common = dict(torch_dtype="bfloat16", hidden_act="silu", bos_token_id=1, eos_token_id=2)
    (folder / "config.json").write_text(json.dumps({**GEOMETRIES[geometry], **common}))
    return folder


def run(args: argparse.Namespace) -> dict:
    port = free_port("127.0.0.1", 31000)
    url = f"http://127.0.0.1:{port}"
    arguments = [
        f"--model-path={model_folder(args.geometry)}",
        "--load-format=dummy",
        "--skip-tokenizer-init",
        f"--max-total-tokens={args.pool}",
        f"--port={port}",
        f"--stream-interval={STREAM_INTERVAL}",
        "--random-seed=1",
        *args.server,
    ]
    if args.budget:
        arguments.append(f"--kv-budget={args.budget}")
    else:
        # Only plugins that are named load. On a CPU the platform is one of them.
        on_cpu = "device cpu" in " ".join(args.server).replace("=", " ")
        os.environ["SGLANG_PLUGINS"] = "longflow_cpu" if on_cpu else "none"
    log = Log()
    with Server(arguments, url, log) as server:
        server.wait_ready(args.start_timeout)
        vocab_size = GEOMETRIES[args.geometry]["vocab_size"]
        streams, began = asyncio.run(drive(url, args, vocab_size))
    result = summarise(args, streams, began, log)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        name = f"{args.name or args.geometry}-{args.budget or 'stock'}"
        (args.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        with (args.out / f"{name}.csv").open("w", newline="") as out:
            fields = list(log.decode[0]) if log.decode else ["time"]
            writer = csv.DictWriter(out, fields)
            writer.writeheader()
            for sample in log.decode:
                writer.writerow({**sample, "time": round(sample["time"] - began, 2)})
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--geometry", choices=GEOMETRIES, required=True)
    add("--pool", type=int, required=True, help="KV pool in tokens")
    add("--input", type=int, default=512)
    add("--output", type=int, required=True)
    add("--requests", type=int, required=True)
    add("--budget", type=int, default=0, help="0: stock SGLang, the plugin not loaded")
    add("--seconds", type=float, default=0, help="end the run after so long; default: never")
    add("--warm", type=float, default=0, help="seconds that are left out of the numbers")
    add("--start-timeout", type=float, default=420)
    add("--seed", type=int, default=1)
    add("--name", default="")
    add("--out", type=Path, help="folder for NAME-BUDGET.json and .csv")
    add("server", nargs="*", help="more server arguments, after --")
    result = run(parser.parse_args())
    print(json.dumps(result, indent=2))
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
