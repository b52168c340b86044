# SPDX-License-Identifier: Apache-2.0
"""Which KV budget lets how many requests run at once: a table, without a GPU.

python examples/planner.py --model Qwen/Qwen3-1.7B --gpu H100-80G
"""

import argparse

from sglang_longflow import PlanError, plan

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="Qwen/Qwen3-1.7B", help="folder, or a built-in name")
parser.add_argument("--gpu", default="H100-80G")
parser.add_argument("--output-tokens", type=int, default=16_000)
parser.add_argument("--users", type=int, default=200)
args = parser.parse_args()

setup = {"gpu": args.gpu, "output_tokens": args.output_tokens}
print(f"{'budget':>8}{'at once':>10}{'full KV':>10}{'throughput':>13}")
for budget in (800, 1600, 3200, 6400):
    try:
        found = plan(args.model, budget=budget, **setup)
    except PlanError as error:  # such as a model that does not fit on the card
        raise SystemExit(str(error)) from None
    gain = "" if found.throughput_gain is None else f"{found.throughput_gain:.2f}x"
    print(f"{budget:>8,}{found.rows_budget:>10,}{found.rows_full:>10,}{gain:>13}")

# The other way round: the largest budget with which all users run at once.
found = plan(args.model, users=args.users, **setup)
if found.budget_tokens is None:
    print(f"{args.users} users: full KV is enough ({found.verdict})")
else:
    print(
        f"{args.users} users: --kv-budget {found.budget_tokens} "
        f"--max-running-requests {found.max_running_requests}"
    )
