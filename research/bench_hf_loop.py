# SPDX-License-Identifier: Apache-2.0
"""Output tokens a second of a Hugging Face decode loop with full KV, the paper's own baseline.

The batch is raised until the card's memory (or --memory-gb of it) no longer holds it at its final
length. A whole generation would take many minutes, so steps are timed at several lengths between
the prompt's and the last, on a cache that is filled with random K and V, and the time of the whole
run follows from them. Weights are random: only sizes matter.

    python research/bench_hf_loop.py --geometry qwen3-1.7b --input 512 --output 16384 --memory-gb 40
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from bench_geometries import GEOMETRIES, model_folder
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

STEPS = 6  # timed at each length, the first one left out


def filled_cache(config, batch: int, length: int, device: str) -> DynamicCache:
    """A cache in which every sequence holds `length` tokens."""
    cache = DynamicCache(config=config)
    shape = (batch, config.num_key_value_heads, length, config.head_dim)
    for layer in range(config.num_hidden_layers):
        k = torch.randn(shape, dtype=torch.bfloat16, device=device)
        cache.update(k, torch.randn_like(k), layer)
    return cache


@torch.inference_mode()
def step_s(model, batch: int, length: int, device: str) -> float:
    """Median seconds of a greedy decode step with so many tokens in the cache."""
    cache = filled_cache(model.config, batch, length, device)
    ids = torch.randint(10, model.config.vocab_size - 10, (batch, 1), device=device)
    times = []
    for _ in range(STEPS):
        _wait(device)
        began = time.perf_counter()
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits
        ids = logits[:, -1].argmax(dim=-1, keepdim=True)
        _wait(device)
        times.append(time.perf_counter() - began)
    assert cache.get_seq_length() == length + STEPS
    return statistics.median(times[1:])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def largest_batch(fits, limit: int) -> int:
    """Largest n up to `limit` for which `fits(n)`, by doubling and then halving the gap; or 0."""
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, high * 2
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def run(args: argparse.Namespace) -> dict:
    if args.memory_gb:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, args.memory_gb * 2**30 / total))
    config = AutoConfig.from_pretrained(model_folder(args.geometry))
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    final = args.input + args.output

    def fits(batch: int) -> bool:
        try:
            step_s(model, batch, final - STEPS, args.device)
        except torch.cuda.OutOfMemoryError:
            return False
        finally:
            if args.device == "cuda":
                torch.cuda.empty_cache()
        return True

    batch = largest_batch(fits, args.max_batch)
    if not batch:
        raise SystemExit(f"--output {args.output}: not even one sequence fits into memory")
    print(f"{batch} sequences fit", flush=True)
    lengths = [
        args.input + args.output * (2 * i + 1) // (2 * args.points) for i in range(args.points)
    ]
    steps = []
    for length in lengths:
        steps.append(step_s(model, batch, length, args.device))
        print(f"{length} tokens: {1e3 * steps[-1]:.2f} ms a step", flush=True)
    return dict(
        geometry=args.geometry,
        input=args.input,
        output=args.output,
        memory_gb=args.memory_gb or None,
        batch=batch,
        lengths=lengths,
        step_ms=[round(1e3 * s, 3) for s in steps],
        output_tokens_per_s=round(batch / statistics.fmean(steps), 1),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--geometry", choices=GEOMETRIES, required=True)
    add("--input", type=int, default=512)
    add("--output", type=int, default=16384)
    add("--points", type=int, default=5, help="lengths at which steps are timed")
    add("--max-batch", type=int, default=1024)
    add("--memory-gb", type=float, default=0, help="use so much of the card; default: all")
    add("--device", default="cuda")
    add("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    result = run(args)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
