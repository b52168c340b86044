# SPDX-License-Identifier: Apache-2.0
"""A program in SGLang's frontend language that gives each of its steps a KV budget.

python examples/frontend_program.py --url http://127.0.0.1:30000
"""

import argparse

import sglang as sgl

from sglang_longflow import BudgetedEndpoint, gen, kv_budget

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--url", default="http://127.0.0.1:30000")
parser.add_argument("--budget", type=int, default=1600, help="KV budget of the draft, in tokens")
parser.add_argument("--max-tokens", type=int, default=2048)
args = parser.parse_args()


@sgl.function
def solve(s, question):
    s += f"Question: {question}\nReasoning:"
    # The long part gets a budget ...
    s += gen("draft", max_tokens=args.max_tokens, kv_budget=args.budget)
    s += "\nCheck:"
    # ... and so does every `gen` of a block.
    with kv_budget(args.budget * 2):
        s += gen("check", max_tokens=args.max_tokens)
    s += "\nAnswer:"
    # A `gen` without a budget takes the endpoint's.
    s += gen("answer", max_tokens=16)


endpoint = BudgetedEndpoint(args.url, kv_budget=args.budget)
state = solve.run(question="How many primes are there below 100?", backend=endpoint)
for name in ("draft", "check", "answer"):
    meta = state.get_meta_info(name)
    print(
        f"{name}: budget {meta['kv_budget']}, {meta['completion_tokens']} tokens generated, "
        f"{meta['kv_resident_tokens']} resident"
    )
print(state["answer"])
