# SPDX-License-Identifier: Apache-2.0
"""The servers that are fuzzed: small pools, radix cache and overlap scheduling on and off.

Each is SGLang's own HTTP server with strict memory checks, whose scheduler runs under the probe of
tests/support (`probe.py`) where ``--probe`` is given.

    python tools/fuzz_servers.py ARGUMENTS OF launch_server

starts the probed one.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests" / "support")]


@dataclass(frozen=True)
class Variant:
    """Arguments of a server, and the lengths that follow from them."""

    arguments: tuple[str, ...]
    budget_tokens: int
    pool_tokens: int
    context_tokens: int = 4096
    policy: str = "longflow-novel"
    radix_cache: bool = True
    model: str = "llama"  # or one of `hybrid_models.KINDS`


def _variant(
    budget: int,
    pool: int,
    *more: str,
    context: int = 4096,
    policy: str = "",
    model: str = "llama",
) -> Variant:
    arguments = ["--max-total-tokens", str(pool), "--sleep-on-idle", "--log-level", "info"]
    if budget:
        arguments += ["--kv-budget", str(budget), "--kv-budget-allow-full"]
    if policy:
        arguments += ["--kv-policy", policy]
    if context != 4096:
        arguments += ["--context-length", str(context)]
    radix_cache = "--disable-radix-cache" not in more
    name = policy or "longflow-novel"
    return Variant((*arguments, *more), budget, pool, context, name, radix_cache, model)


_NO_OVERLAP = ("--disable-overlap-schedule",)
_EVERYTHING = (
    "--enable-return-hidden-states",
    "--enable-priority-scheduling",
    "--disable-priority-preemption",
    "--enable-custom-logit-processor",
    "--enable-metrics",
)
VARIANTS: dict[str, Variant] = {
    "A": _variant(96, 2048),
    "B": _variant(
        48, 400, "--max-queued-requests", "6", "--max-running-requests", "4", context=1024
    ),
    "C": _variant(
        96,
        2048,
        "--disable-radix-cache",
        *_NO_OVERLAP,
        "--chunked-prefill-size",
        "64",
        policy="longflow",
    ),
    "D": _variant(96, 1500, "--chunked-prefill-size", "128", *_EVERYTHING),
    "E": _variant(64, 1500, *_NO_OVERLAP, *_EVERYTHING, policy="longflow"),
    "F": _variant(64, 1500, "--disable-radix-cache", "--chunked-prefill-size", "128"),
    # Long prompts come in many small chunks, and shorter ones pass them.
    "G": _variant(
        64, 1000, "--chunked-prefill-size", "64", "--schedule-policy", "shortest-prefill-first"
    ),
    # Recurrent layers. With a tree SGLang counts five states a request: three run at once, and
    # prefixes give up their states for those that wait.
    "H": _variant(
        *(96, 1500, "--max-mamba-cache-size", "15", "--chunked-prefill-size", "128"),
        model="qwen3_next",
    ),
    # Without a tree a request takes one.
    "I": _variant(
        *(64, 1000, "--disable-radix-cache", "--max-mamba-cache-size", "6"),
        *("--chunked-prefill-size", "64"),
        model="nemotron_h",
    ),
    # The same sizes without a budget: what ends this one is SGLang's own.
    "stock": _variant(0, 2048, *_EVERYTHING),
    "stock-no-radix": _variant(0, 2048, "--disable-radix-cache"),
    "stock-H": _variant(
        *(0, 1500, "--max-mamba-cache-size", "15", "--chunked-prefill-size", "128"),
        model="qwen3_next",
    ),
}


def build_model(folder: Path, tokenizer: Path, kind: str = "llama") -> Path:
    """A tiny random model with peaked weights, and a real tokenizer and chat template."""
    from transformers import AutoTokenizer

    import harness
    import hybrid_models
    from fuzz_fields import HIDDEN, VOCABULARY

    sizes = dict(vocab_size=VOCABULARY, hidden_size=HIDDEN)
    if kind in hybrid_models.KINDS:
        hybrid_models.build_hybrid_model(kind, folder, **sizes)
    else:
        harness.build_tiny_model(kind, folder, num_hidden_layers=2, **sizes)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def start(variant: Variant, model: Path, *, probe: bool, more: tuple[str, ...] = ()):
    """A `harness.Server` of a variant; not waited for."""
    import harness
    from hybrid_models import FLOAT32_STATES, KINDS

    dtype = "bfloat16" if harness.DEVICE == "cuda" else "float32"
    arguments = ["--model-path", str(model), "--dtype", dtype, *variant.arguments, *more]
    # A worker of ours must never look for a model on the network.
    env = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if variant.model in KINDS:
        env |= FLOAT32_STATES  # a state in bf16 is rounded where a chunk ends
    if not probe:
        return harness.Server(arguments, env)
    env["LONGFLOW_PROBE_FILE"] = tempfile.mkstemp(suffix=".json")[1]
    return harness.Server(arguments, env, command=(str(Path(__file__).resolve()),))


def main() -> None:
    from sglang.srt.entrypoints.http_server import launch_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    import probe

    load_plugins()
    server_args = prepare_server_args(sys.argv[1:])
    try:
        launch_server(server_args, run_scheduler_process_func=probe.run_scheduler_process)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__main__":
    main()
