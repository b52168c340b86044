# SPDX-License-Identifier: Apache-2.0
"""One batch, a different KV budget for each prompt.

python examples/batch_budgets.py --url http://127.0.0.1:30000
"""

import argparse

import requests

from sglang_longflow import Budget, stats

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--url", default="http://127.0.0.1:30000")
parser.add_argument("--budgets", type=int, nargs="+", default=[400, 800, 1600])
parser.add_argument("--max-tokens", type=int, default=4096)
args = parser.parse_args()

prompt = "Write down the numbers from 1 on, one per line:\n1\n2\n3\n"
# A list of prompts takes a list of sampling parameters, one for each.
body = {
    "text": [prompt] * len(args.budgets),
    "sampling_params": [
        {"max_new_tokens": args.max_tokens, "temperature": 0, **Budget(tokens).params()}
        for tokens in args.budgets
    ],
}
response = requests.post(f"{args.url}/generate", json=body)
if response.status_code != 200:  # a 400 names the budget and its limit
    raise SystemExit(response.text)

print(f"{'budget':>8}{'generated':>12}{'resident':>11}{'overwritten':>14}")
for answer in response.json():
    meta = answer["meta_info"]
    columns = ("kv_budget", "completion_tokens", "kv_resident_tokens", "kv_overwritten_tokens")
    print("{:>8}{:>12}{:>11}{:>14}".format(*(meta[name] for name in columns)))

now = stats(args.url)
print(f"the server's pool: {now['pool']['total_tokens']:,} tokens for all requests together")
