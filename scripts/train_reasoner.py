"""Train the small reasoning model from nothing: Qwen3's architecture, own words, minutes on a GPU.

Problems come from `sglang_longflow.reasoner` without end, each batch from the seed and its number,
so a run can be repeated. Lengths grow over the first third of the steps. The weights that are
saved are a running mean of the last steps'.

What is printed for unseen problems is the share whose every token is right under teacher forcing:
those are the ones that greedy decoding with full KV solves.

    python scripts/train_reasoner.py --out reasoner [--steps 4500 | --minutes 6]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from sglang_longflow.reasoner import KINDS, draw_length, make_problem, make_problems
from sglang_longflow.reasoner.problems import MAX_CHAIN_TOKENS
from sglang_longflow.reasoner.vocabulary import END, PAD, TOKEN_IDS, TOKENS, encode, save_tokenizer

CONTEXT_TOKENS = 8192
IGNORED = -100


def config(hidden: int, layers: int):
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=len(TOKENS),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 128),
        head_dim=64,
        max_position_embeddings=CONTEXT_TOKENS,
        rope_theta=100_000.0,
        tie_word_embeddings=True,
        bos_token_id=TOKEN_IDS["<bos>"],
        eos_token_id=TOKEN_IDS[END],
        pad_token_id=TOKEN_IDS[PAD],
    )


def pad_batch(problems) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [n, longest] and labels; prompts and padding are not learned."""
    rows, labels = [], []
    for problem in problems:
        prompt = encode(problem.prompt)
        chain = [*encode(problem.chain)[1:], TOKEN_IDS[END]]
        rows.append(prompt + chain)
        labels.append([IGNORED] * len(prompt) + chain)
    width = -(-max(map(len, rows)) // 64) * 64
    ids = torch.full((len(rows), width), TOKEN_IDS[PAD])
    wanted = torch.full((len(rows), width), IGNORED)
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        wanted[i, : len(label)] = torch.tensor(label)
    return ids, wanted


class Batches(Dataset):
    """Batch k, of chains of one length, from the seed and k."""

    def __init__(self, seed: int, steps: int, batch_tokens: int, longest: int):
        self.seed, self.steps, self.batch_tokens, self.longest = seed, steps, batch_tokens, longest

    def __len__(self) -> int:
        return self.steps

    def longest_at(self, step: int) -> int:
        share = step / max(1, self.steps)
        if share < 1 / 3:
            return min(self.longest, max(300, int(self.longest * (share * 3) ** 2)))
        return self.longest

    def __getitem__(self, step: int):
        rng = random.Random(f"training/{self.seed}/{step}")
        length = draw_length(rng, self.longest_at(step))
        count = max(len(KINDS), self.batch_tokens // (length + 120))
        return pad_batch([make_problem(KINDS[i % len(KINDS)], rng, length) for i in range(count)])


@torch.no_grad()
def solved(model, problems, device: str, batch_tokens: int) -> dict[str, float]:
    """Share of the problems of each kind whose every token is the model's first choice."""
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    ordered = sorted(problems, key=lambda problem: problem.chain_tokens)
    while ordered:
        count = max(1, batch_tokens // (ordered[-1].chain_tokens + 120))
        part, ordered = ordered[-count:], ordered[:-count]
        ids, labels = (t.to(device) for t in pad_batch(part))
        with torch.autocast(device, torch.bfloat16):
            choice = model(input_ids=ids[:, :-1]).logits.argmax(dim=-1)
        wanted = labels[:, 1:]
        whole = ((choice == wanted) | (wanted == IGNORED)).all(dim=1).tolist()
        for problem, ok in zip(part, whole, strict=True):
            right[problem.kind].append(ok)
    return {kind: sum(found) / max(1, len(found)) for kind, found in right.items()}


def new_model(args: argparse.Namespace):
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(args.seed)
    return Qwen3ForCausalLM(config(args.hidden, args.layers)).to(args.device)


def loss_of(model, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the tokens that are learned."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = model(input_ids=ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED
    )


def steps_within(args: argparse.Namespace, looked_at: int = 12) -> int:
    """How many steps take `args.minutes`, from the time of a few on a model that is thrown away."""
    model = new_model(args)
    batches = Batches(args.seed, 1, args.batch_tokens, args.longest)
    ids, labels = (t.to(args.device) for t in batches[1])
    for step in range(looked_at):
        if step == looked_at // 2:
            began = _now(args.device)
        loss_of(model, ids, labels).backward()
    seconds = (_now(args.device) - began) / (looked_at - looked_at // 2)
    # A step of the optimizer, and looks at unseen problems, are not in it.
    return max(1, int(0.85 * 60 * args.minutes / seconds))


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def train(args: argparse.Namespace):
    device = args.device
    if args.minutes:
        args.steps = steps_within(args)
        print(f"--steps {args.steps} take about {args.minutes:g} minutes", flush=True)
    model = new_model(args)
    mean = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(args.mean_decay)
    )
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [dict(params=matrices, weight_decay=0.05), dict(params=others, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(
        groups, lr=args.lr, betas=(0.9, 0.98), fused=device == "cuda", eps=1e-9
    )
    warm = max(1, args.steps // 50)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda k: min((k + 1) / warm, 1.0) * max(0.02, 1 - max(0.0, k / args.steps - 0.3) / 0.7),
    )
    data = Batches(args.seed, args.steps, args.batch_tokens, args.longest)
    loader = DataLoader(data, batch_size=None, num_workers=args.workers, prefetch_factor=4)
    unseen = list(make_problems(10**6 + args.seed, args.check, args.longest))
    began, tokens, log = time.monotonic(), 0, []
    for step, (ids, labels) in enumerate(loader):
        ids, labels = ids.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        loss = loss_of(model, ids, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean.update_parameters(model)
        tokens += ids.numel()
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            seconds = time.monotonic() - began
            shares = solved(mean, unseen, device, args.batch_tokens)
            log.append(dict(step=step + 1, loss=round(loss.item(), 6), s=round(seconds), **shares))
            print(
                f"step {step + 1}/{args.steps} loss {loss.item():.5f} "
                f"{tokens / seconds / 1e3:.0f}k tokens/s {seconds:.0f} s solved "
                + " ".join(f"{kind} {share:.1%}" for kind, share in shares.items()),
                flush=True,
            )
    return mean.module, log


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the model")
    add("--seed", type=int, default=1)
    add("--steps", type=int, default=4500)
    add("--batch-tokens", type=int, default=65_536)
    add("--longest", type=int, default=MAX_CHAIN_TOKENS, help="tokens of the longest chains")
    add("--hidden", type=int, default=256)
    add("--layers", type=int, default=8)
    add("--lr", type=float, default=1.5e-3)
    add("--mean-decay", type=float, default=0.998)
    add("--every", type=int, default=250, help="steps between two looks at unseen problems")
    add("--check", type=int, default=300, help="unseen problems")
    add("--workers", type=int, default=8)
    add("--minutes", type=float, default=0, help="choose --steps to take about so long")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    model, log = train(args)
    args.out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(args.out)
    save_tokenizer(args.out, CONTEXT_TOKENS)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    (args.out / "training.json").write_text(
        json.dumps({"settings": settings, "log": log}, indent=1)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
