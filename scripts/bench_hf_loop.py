"""Output tokens a second of a Hugging Face generate loop with full KV, the paper's own baseline.

The batch is doubled until the card's memory (or --memory-gb of it) is full; every batch size that
fits is timed, and the best one counts. Weights are random: only sizes matter.

    python scripts/bench_hf_loop.py --geometry qwen3-1.7b --input 512 --output 1024 --memory-gb 40
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from bench_geometries import GEOMETRIES, model_folder
from transformers import AutoConfig, AutoModelForCausalLM


def generate_s(model, batch: int, args: argparse.Namespace, vocab_size: int) -> float:
    """Seconds that one batch takes from its prompts to its last token."""
    ids = torch.randint(10, vocab_size - 10, (batch, args.input), device=args.device)
    _wait(args.device)
    began = time.perf_counter()
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=args.output,
        max_new_tokens=args.output,
        pad_token_id=0,
    )
    _wait(args.device)
    assert out.shape == (batch, args.input + args.output)
    return time.perf_counter() - began


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def run(args: argparse.Namespace) -> dict:
    if args.memory_gb:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, args.memory_gb * 2**30 / total))
    config = AutoConfig.from_pretrained(model_folder(args.geometry))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).to(args.device).eval()
    tried = []
    batch = args.first_batch
    while batch <= args.max_batch:
        try:
            seconds = generate_s(model, batch, args, GEOMETRIES[args.geometry]["vocab_size"])
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        tried.append(
            dict(
                batch=batch,
                seconds=round(seconds, 2),
                output_tokens_per_s=round(batch * args.output / seconds, 1),
            )
        )
        print(json.dumps(tried[-1]), flush=True)
        batch *= 2
    if not tried:
        raise SystemExit(f"first_batch={args.first_batch}: does not fit into memory")
    best = max(tried, key=lambda line: line["output_tokens_per_s"])
    return dict(geometry=args.geometry, input=args.input, output=args.output, best=best, all=tried)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--geometry", choices=GEOMETRIES, required=True)
    add("--input", type=int, default=512)
    add("--output", type=int, default=1024)
    add("--first-batch", type=int, default=8)
    add("--max-batch", type=int, default=1024)
    add("--memory-gb", type=float, default=0, help="use so much of the card; default: all")
    add("--device", default="cuda")
    add("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    result = run(args)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["best"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
