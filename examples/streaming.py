# SPDX-License-Identifier: Apache-2.0
"""An answer as it is generated, and how many KV slots it holds meanwhile.

python examples/streaming.py --url http://127.0.0.1:30000
"""

import argparse
import json

import requests

from sglang_longflow import Budget

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--url", default="http://127.0.0.1:30000")
parser.add_argument("--budget", type=int, default=1600, help="KV budget in tokens")
parser.add_argument("--max-tokens", type=int, default=4096)
args = parser.parse_args()

body = {
    "text": "The history of the steam engine begins",
    "sampling_params": {"max_new_tokens": args.max_tokens, **Budget(args.budget).params()},
    "stream": True,
}
shown, meta = 0, {}
# SGLang's own endpoint: each chunk says how many slots are held. On the OpenAI endpoints, chunks do
# with stream_options={"include_usage": True, "continuous_usage_stats": True}.
with requests.post(f"{args.url}/generate", json=body, stream=True) as response:
    response.raise_for_status()
    for line in response.iter_lines():
        if not line.startswith(b"data: {"):  # an empty line, or the last one, [DONE]
            continue
        event = json.loads(line.removeprefix(b"data: "))
        if "error" in event:  # the headers were sent before the request was refused
            raise SystemExit(event["error"]["message"])
        # Each event has the whole text so far.
        print(event["text"][shown:], end="", flush=True)
        shown, meta = len(event["text"]), event["meta_info"]

print(
    f"\n{meta['completion_tokens']} tokens generated, {meta['kv_resident_tokens']} slots held at "
    f"the end (budget {meta['kv_budget']}), {meta['kv_overwritten_tokens']} overwritten"
)
