# SPDX-License-Identifier: Apache-2.0
"""Mixed traffic on two CPU workers behind the router, one scheduler killed: nothing may leak.

    python scripts/soak.py --minutes 30 --model FOLDER [--tools .tools] [--json FILE]

The same code as tests/deploy/test_soak.py. `--model` has the tokenizer for the tiny random model.
Needs `make tools`. Prints what it found as JSON; exits with 1 if something was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tools")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--model", type=Path, required=True, help="folder whose tokenizer is used")
    parser.add_argument("--tools", type=Path, default=ROOT / ".tools")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="the report goes here, too")
    options = parser.parse_args()
    from fleet import text_model
    from soak_run import Soak, as_text

    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        soak = Soak(
            folder,
            text_model(folder / "model", options.model),
            options.tools,
            minutes=options.minutes,
            clients=options.clients,
            growth_mb_a_minute=1.0,
            seed=options.seed,
        )
        report = asyncio.run(soak.run())
    print(as_text(report))
    if options.json:
        options.json.write_text(as_text(report) + "\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
