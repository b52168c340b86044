# SPDX-License-Identifier: Apache-2.0
"""The pictures of the console in docs/images, taken in Chromium on a running server.

    longflow serve FOLDER/SmolLM2-135M-Instruct --kv-budget 256 --kv-budget-allow-full \\
        --max-total-tokens 4000 --max-running-requests 12
    python scripts/console_pictures.py --url http://127.0.0.1:30000

Users ask, each one request after the other, until the charts have something to show. Then come the
pictures of the Watch tab, and with the users gone that of the Try tab. `make tools` brings
Chromium.
"""

from __future__ import annotations

import argparse
import subprocess
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from sglang_longflow.client.http import NoResponse, ask

ROOT = Path(__file__).parents[1]
#: (what they do, prompt, budget; 0 is full KV)
USERS = (
    ("summary", "Summarize the history of the lighthouse, from fires to electric lamps.", 256),
    ("report", "Write a report on the water supply of a small town, with six sections.", 256),
    ("essay", "Write an essay on why people keep gardens.", 384),
    ("tutor", "Teach me long division with three examples, step by step.", 256),
    ("story", "Tell a long story of a fox, a river and an old bridge.", 192),
    ("planner", "Plan a week of meals for four people and list what to buy each day.", 256),
    ("review", "Review a book about the sea: plot, people, style and what could be better.", 0),
    ("agent", "List the steps to move a shop to a new building, then explain every step.", 320),
    ("notes", "Take notes of a talk on how bees find their way home.", 128),
    ("letter", "Write a long letter to a friend who moves abroad.", 256),
    ("recipe", "Write down a recipe for bread, with every step and why it is done.", 192),
    ("minutes", "Write the minutes of a meeting about a new playground.", 256),
)


def user(url: str, name: str, prompt: str, budget: int, ended: threading.Event) -> None:
    """One request after the other until the pictures are taken."""
    number = 7 + sum(map(ord, name)) % 60
    while not ended.is_set():
        number += 1
        rid = f"{name}-{number:03d}"
        body: dict[str, Any] = {"text": f"{prompt}\n\n", "rid": rid, "stream": True}
        body["sampling_params"] = {"max_new_tokens": 250 + number * 67 % 450, "temperature": 0.7}
        body["sampling_params"] |= {"ignore_eos": True, "custom_params": {"kv_budget": budget}}
        try:
            answer = ask(f"{url}/generate", body)
        except NoResponse:
            return  # the server ended
        if not answer.is_success and not ended.is_set():
            raise SystemExit(f"{rid}: {answer.status_code}: {answer.text[:300]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--tools", type=Path, default=ROOT / ".tools")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images")
    parser.add_argument("--load-s", type=float, default=240, help="before the first picture")
    args = parser.parse_args()
    ended = threading.Event()
    for who in USERS:
        threading.Thread(target=user, args=(args.url, *who, ended), daemon=True).start()
        time.sleep(0.5)
    time.sleep(args.load_s)
    take(args, "watch")
    ended.set()
    ask(f"{args.url}/abort_request", {"rid": f"pictures-{uuid.uuid4()}", "abort_all": True})
    time.sleep(3)
    take(args, "try")


def take(args: argparse.Namespace, tab: str) -> None:
    script = Path(__file__).with_suffix(".mjs")
    modules = args.tools.resolve() / "node/node_modules"
    subprocess.run(["node", script, modules, args.url, args.out.resolve(), tab], check=True)


if __name__ == "__main__":
    main()
