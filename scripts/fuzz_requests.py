# SPDX-License-Identifier: Apache-2.0
"""Whole request bodies, made from SGLang's own schemas, against a live server under a judge.

    python scripts/fuzz_requests.py --requests 2000 --seed 1 --server A --tokenizer FOLDER
    python scripts/fuzz_requests.py --replay found/A-1.jsonl --server A --tokenizer FOLDER

docs/understand/fuzzing.md says what is judged. Exits with 1 if something was found; the calls of a
finding go to `--out` as JSONL, which `--replay` sends again. The same seed makes the same requests.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests/support"), str(ROOT / "tools")]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="A", help="a variant of tools/fuzz_servers.py")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, help="default: a new one, which is printed")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--check-every", type=int, default=200)
    parser.add_argument(
        "--findings", type=int, default=1, help="start again after so many less one"
    )
    parser.add_argument("--probe", action="store_true", help="check rows and tree after every step")
    parser.add_argument("--tokenizer", type=Path, help="folder whose tokenizer the model gets")
    parser.add_argument("--model", type=Path, help="a folder made by an earlier run")
    parser.add_argument("--out", type=Path, default=Path("found"))
    parser.add_argument("--csv", type=Path, help="append counts by route and outcome")
    parser.add_argument("--replay", type=Path, help="send the calls of this file instead")
    parser.add_argument("--sweep", action="store_true", help="each odd value alone, one by one")
    parser.add_argument("--start-at", type=int, default=0, help="leave out so many of the sweep")
    parser.add_argument("--minutes", type=float, default=1e9, help="send nothing new after so many")
    parser.add_argument("--one-by-one", action="store_true", help="replay with one worker")
    parser.add_argument(
        "--with-known", action="store_true", help="send what fuzz_known.py names, too"
    )
    return parser.parse_args()


def main() -> int:
    options = parse()
    # So that a server never outlives the script: SystemExit leaves every `with`.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    from fuzz_servers import VARIANTS, build_model

    variant = VARIANTS[options.server]
    seed = options.seed if options.seed is not None else time.time_ns() % 1_000_000
    if not options.model and not options.tokenizer:
        print("fuzz_requests: --tokenizer or --model is needed", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        model = options.model or build_model(Path(name) / "model", options.tokenizer, variant.model)
        return campaign(options, variant, model, seed)


class Servers:
    """Servers one after the other; where deaths are expected, the next one starts meanwhile."""

    def __init__(self, start: Callable[[], Any], has_spare: bool):
        self.start, self.has_spare = start, has_spare
        self.spare: Any = None

    @contextlib.contextmanager
    def ready(self) -> Iterator[Any]:
        with contextlib.ExitStack() as stack:
            server = self.spare or stack.enter_context(self.start())
            stack.callback(server.stop)
            self.spare = None
            server.wait_ready()
            # On a GPU the first draw of a token by chance compiles kernels, for minutes.
            params = {"max_new_tokens": 2, "temperature": 0.8, "top_p": 0.9, "top_k": 9}
            warm = {"text": "warm", "sampling_params": params | {"min_p": 0.1}}
            assert server.request("/generate", warm, timeout_s=500)[0] == 200
            if self.has_spare:
                self.spare = self.start()
            try:
                yield server
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        if self.spare is not None:
            self.spare.stop()
            self.spare = None


def campaign(options: argparse.Namespace, variant, model: Path, seed: int) -> int:
    from fuzz_bodies import Calls
    from fuzz_call import Call, Limits
    from fuzz_draw import call_stream, sweep
    from fuzz_known import is_known
    from fuzz_run import fuzz, ours
    from fuzz_servers import start

    limits = Limits(
        variant.budget_tokens or 96, variant.pool_tokens, variant.context_tokens, str(model)
    )
    left, found, taken = options.requests, 0, 0
    until = time.monotonic() + 60 * options.minutes
    skipped: Counter = Counter()
    total: Counter = Counter()
    servers = Servers(lambda: start(variant, model, probe=options.probe), options.findings > 1)
    while left > 0 and found < options.findings and time.monotonic() < until:
        with servers.ready() as server:
            if options.replay:
                lines = options.replay.read_text().splitlines()
                calls = iter([Call.from_json(json.loads(line)) for line in lines])
                left = 0
            else:
                status, document = server.request("/openapi.json")
                assert status == 200, document
                made = Calls(document, limits)
                if options.sweep:
                    calls = islice(sweep(made), options.start_at + taken, None)
                    left = max(left, 1_000_000)
                else:
                    calls = call_stream(made.strategy(), left, seed + found)

            def wanted(calls=calls):
                nonlocal taken
                for call in calls:
                    if time.monotonic() > until:
                        return
                    taken += 1
                    name = is_known(call, limits) if not options.with_known else None
                    if name is None:
                        yield call
                    else:
                        skipped[name] += 1

            workers = 1 if options.one_by_one or options.sweep else options.workers
            report = asyncio.run(
                fuzz(server, variant, wanted(), workers=workers, check_every=options.check_every)
            )
        print(f"server {options.server}, seed {seed + found}: {report.text()}", flush=True)
        total += report.sent
        if options.csv:
            write_counts(options.csv, options.server, seed + found, report.sent)
        print(f"  taken {options.start_at + taken}", flush=True)
        left = left - report.requests if report.finding else 0
        if report.finding:
            found += 1
            replay = report.finding.write(options.out, f"{options.server}-{seed}-{found}")
            print(f"  calls: {replay}; the last ones:", flush=True)
            for call in report.finding.calls[-3:] if workers == 1 else report.finding.open_calls:
                print(f"    {json.dumps(call.to_json())[:400]}", flush=True)
        for name in ours(report):
            print(f"  an exception of this package: {name}", flush=True)
    servers.close()
    requests = sum(total.values())
    print(f"{options.server}: {requests} requests, {found} findings; left out: {dict(skipped)}")
    if options.sweep:
        print(f"go on with --start-at {options.start_at + taken}")
    return 1 if found else 0


def write_counts(path: Path, server: str, seed: int, total: Counter) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["server", "seed", "route", "outcome", "requests"])
        for (route, outcome), count in sorted(total.items()):
            writer.writerow([server, seed, route, outcome, count])


if __name__ == "__main__":
    sys.exit(main())
