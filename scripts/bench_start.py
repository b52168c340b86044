# SPDX-License-Identifier: Apache-2.0
"""Seconds until a server answers: stock SGLang, the plugin without a budget, and with one.

Each start is a real `launch_server` with dummy weights. The systems take turns, `--rounds` times,
one server at a time; the first round is not counted, it fills the caches of files and kernels.

    python scripts/bench_start.py --geometry qwen3-1.7b --pool 100000 --csv FILE -- --SERVER-FLAG
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from pathlib import Path

from bench_geometries import GEOMETRIES, model_folder, stock_environment

from sglang_longflow.server.preflight import free_port
from sglang_longflow.server.process import Server

BUDGET = 1024
#: By system: its own arguments.
SYSTEMS: dict[str, list[str]] = {
    "stock": [],
    "inert": [],
    "budget": [f"--kv-budget={BUDGET}"],
}


def seconds_to_ready(system: str, arguments: list[str], timeout: float) -> float:
    """From the process's start until SGLang's /health has generated a token."""
    port = free_port("127.0.0.1", 31000)
    ports = [f"--port={port}", f"--nccl-port={free_port('127.0.0.1', port + 1)}"]
    environment = stock_environment(arguments) if system == "stock" else None
    began = time.monotonic()
    server = Server(
        [*arguments, *SYSTEMS[system], *ports], f"http://127.0.0.1:{port}", environment=environment
    )
    try:
        server.wait_ready(timeout)
        return time.monotonic() - began
    finally:
        server.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--geometry", choices=GEOMETRIES, required=True)
    add("--pool", type=int, required=True, help="KV pool in tokens")
    add("--systems", default=",".join(SYSTEMS), help="default: all of them, %(default)s")
    add("--rounds", type=int, default=3, help="the first one is not counted")
    add("--start-timeout", type=float, default=420)
    add("--csv", type=Path, help="one line a start")
    add("server", nargs="*", help="more server arguments, after --")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("--rounds: expected at least 2, the first is not counted")
    systems = args.systems.split(",")
    if unknown := set(systems) - set(SYSTEMS) | {"stock"} - set(systems):
        parser.error(f"--systems: expected stock and others of {', '.join(SYSTEMS)}: {unknown}")
    arguments = [
        f"--model-path={model_folder(args.geometry)}",
        "--load-format=dummy",
        "--skip-tokenizer-init",
        f"--max-total-tokens={args.pool}",
        *args.server,
    ]
    rows = []
    for index in range(args.rounds):
        first = index % len(systems)
        order = systems[first:] + systems[:first]
        for system in order:
            seconds = round(seconds_to_ready(system, arguments, args.start_timeout), 2)
            rows.append(dict(round=index, system=system, seconds=seconds))
            print(f"round {index}: {system} {seconds:.1f} s", flush=True)
    if args.csv:
        with args.csv.open("w", newline="") as out:
            writer = csv.DictWriter(out, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    counted = {
        system: [row["seconds"] for row in rows if row["system"] == system and row["round"]]
        for system in systems
    }
    stock = statistics.median(counted["stock"])
    for system, seconds in counted.items():
        middle = statistics.median(seconds)
        print(f"{system}: median {middle:.1f} s of {seconds}, stock {middle - stock:+.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
