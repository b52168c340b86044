# SPDX-License-Identifier: Apache-2.0
"""A KV budget with the openai package.

longflow serve Qwen/Qwen3-1.7B --kv-budget 3200 --kv-budget-allow-full
python examples/openai_client.py --url http://127.0.0.1:30000
"""

import argparse

import openai

from sglang_longflow import Budget

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--url", default="http://127.0.0.1:30000")
parser.add_argument("--api-key", default="none")
parser.add_argument("--budget", type=int, default=1600, help="KV budget in tokens")
parser.add_argument("--max-tokens", type=int, default=4096)
args = parser.parse_args()

client = openai.OpenAI(base_url=f"{args.url}/v1", api_key=args.api_key)
model = client.models.list().data[0].id
question = [{"role": "user", "content": "How many primes are there below 100?"}]

# A budget of 0 is full KV; a server allows it with --kv-budget-allow-full.
for budget in (Budget(args.budget), Budget(0)):
    try:
        answer = client.chat.completions.create(
            model=model,
            messages=question,
            max_tokens=args.max_tokens,
            extra_body=budget.params(),
        )
    except openai.BadRequestError as error:
        if "--kv-budget-allow-full" not in error.body["message"]:
            raise
        print(f"refused: {error.body['message']}")
        continue
    kv = answer.metadata
    print(
        f"budget {kv['kv_budget'] or 'full'}: {answer.usage.completion_tokens} tokens generated, "
        f"{kv['kv_resident_tokens']} resident at the end, "
        f"{kv['kv_overwritten_tokens']} overwritten"
    )
    print(answer.choices[0].message.content)

# A budget that the server does not accept is an HTTP 400 that says why.
try:
    client.chat.completions.create(model=model, messages=question, extra_body=Budget(1).params())
except openai.BadRequestError as error:
    print(f"refused: {error.body['message']}")
