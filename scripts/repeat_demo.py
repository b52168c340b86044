# SPDX-License-Identifier: Apache-2.0
"""`longflow demo` again and again on a machine that is made slow; says how often it came through.

    python scripts/repeat_demo.py --times 10                    # beside four busy loops
    python scripts/repeat_demo.py --times 3 --loops 1 --core 0  # on half of one core
    python scripts/repeat_demo.py --isa AVX2                    # as a CPU without bf16

What follows ``--`` goes to the demo. Ends with 1 if a run failed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from busy_loops import busy_loops, pin

#: PyTorch's and oneDNN's own kernels for older CPUs; the demo's dtype follows.
OLDER_CPU = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
DEMO = """
import sys
from sglang_longflow.cli.main import main
from sglang_longflow.server import serve
dtype = sys.argv[1]
if dtype != "auto":
    serve.fast_dtype = lambda: dtype
sys.exit(main(["demo", *sys.argv[2:]]))
"""
LONGEST_SILENCE_S = 15.0


def once(args: argparse.Namespace, log: Path) -> tuple[int, float, float, str]:
    """Status, seconds, longest silence and the two phases' wall times of one demo."""
    environment = {**os.environ, **(OLDER_CPU if args.isa else {})}
    dtype = args.dtype or ("float32" if args.isa else "auto")
    command = [sys.executable, "-W", "ignore", "-c", DEMO, dtype, *args.demo]
    begin = last = time.monotonic()
    silence, walls = 0.0, "-"
    with log.open("w") as out, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment, preexec_fn=lambda: pin(args.core),
    ) as running:  # fmt: skip
        assert running.stdout is not None
        for line in running.stdout:
            now = time.monotonic()
            silence, last = max(silence, now - last), now
            out.write(line)
            if match := re.search(r"wall time +([\d.]+ s) +([\d.]+ s)", line):
                walls = f"{match[1]}, {match[2]}"
    return running.wait(), time.monotonic() - begin, silence, walls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--loops", type=int, default=4, help="busy loops beside the demo")
    parser.add_argument("--core", type=int, help="everything on this core alone")
    parser.add_argument("--isa", choices=["AVX2"], help="what kernels may use")
    parser.add_argument("--dtype", help="in place of the one that is chosen")
    parser.add_argument("--logs", type=Path, default=Path("build/repeat_demo"))
    parser.add_argument("demo", nargs="*", help="arguments of the demo, after --")
    args = parser.parse_args()
    args.logs.mkdir(parents=True, exist_ok=True)
    good = 0
    with busy_loops(args.loops, args.core):
        for number in range(1, args.times + 1):
            status, seconds, silence, walls = once(args, args.logs / f"{number}.log")
            good += status == 0 and silence < LONGEST_SILENCE_S
            print(
                f"{number}: status {status}, {seconds:.0f} s, phases {walls}, longest silence "
                f"{silence:.1f} s",
                flush=True,
            )
    print(f"{good} of {args.times}")
    return 0 if good == args.times else 1


if __name__ == "__main__":
    raise SystemExit(main())
