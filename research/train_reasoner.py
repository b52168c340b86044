# SPDX-License-Identifier: Apache-2.0
"""Train the small reasoning model from nothing: Qwen3's architecture, own words, minutes on a GPU.

Problems come from `sglang_longflow.reasoner` without end, each batch from the seed and its number,
so a run can be repeated. Lengths grow over the first third of the steps. The weights that are
saved are a running mean of the last steps'.

What is printed for unseen problems is the share whose every token is right under teacher forcing:
those are the ones that greedy decoding with full KV solves.

    python research/train_reasoner.py --out reasoner --compile

With ``--hide`` a share of the problems is learned with tokens missing that are of no more use
(`lifetimes`), as a KV budget takes them away: a model that has always seen everything looks at old
lines beside the one that it needs. With ``--drop`` single layers miss tokens that are of use, too,
as rules of eviction choose in each layer by itself: what is lost in one is to be read in another.
``--start`` goes on from a model, at chains of all lengths.

    python research/train_reasoner.py --start reasoner --hide 0.8 --drop 0.4 \
      --steps 2000 --lr 5e-4 --out robust
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import random
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from sglang_longflow.reasoner import KINDS, draw_length, make_problem, make_problems
from sglang_longflow.reasoner.lifetimes import lifetimes
from sglang_longflow.reasoner.problems import MAX_CHAIN_TOKENS
from sglang_longflow.reasoner.vocabulary import END, PAD, TOKEN_IDS, TOKENS, encode, save_tokenizer

CONTEXT_TOKENS = 8192
IGNORED = -100
WEIGHTS = {"yes": 5.0}  # once in a search chain


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


def seen_until(
    problems, width: int, layers: int, hide: float, drop: float, rng: random.Random
) -> torch.Tensor | None:
    """[layers, n, width]: the first later place that does not see a token in a layer, `width` for
    those always seen. None where every token is seen.

    Of a share `hide` of the problems: of their tokens, each by itself, half to all, in every layer,
    from the end of their use on or up to 500 tokens later; and in each layer a share of all tokens,
    up to `drop`, from 64 to 800 tokens after they were written.
    """
    if not hide:
        return None
    until = torch.full((layers, len(problems), width), width)
    generator = torch.Generator().manual_seed(rng.getrandbits(48))
    for n, problem in enumerate(problems):
        if rng.random() >= hide:
            continue
        share = rng.uniform(0.5, 1.0)
        for place, end in enumerate(lifetimes(problem)):
            if rng.random() < share:
                until[:, n, place] = min(width, end + int(500 ** rng.random()) - 1)
        shares = drop * torch.rand(layers, 1, generator=generator)
        dropped = torch.rand(layers, width, generator=generator) < shares
        after = torch.randint(64, 800, (layers, width), generator=generator) + torch.arange(width)
        until[:, n] = torch.where(dropped, torch.minimum(until[:, n], after), until[:, n])
    return until


def visible(until: torch.Tensor) -> torch.Tensor:
    """[n, 1, width, width]: which token sees which, from a layer's `seen_until`."""
    place = torch.arange(until.shape[1], device=until.device)
    seen = (place[:, None] >= place) & (place[:, None] < until[:, None, :])
    return seen[:, None]


class Batches(Dataset):
    """Batch k, of chains of one length, from the seed and k."""

    def __init__(self, args: argparse.Namespace):
        self.seed, self.steps, self.batch_tokens = args.seed, args.steps, args.batch_tokens
        self.longest, self.hide, self.grow = args.longest, args.hide, args.start is None
        self.drop, self.layers = args.drop, args.layers

    def __len__(self) -> int:
        return self.steps

    def longest_at(self, step: int) -> int:
        share = step / max(1, self.steps)
        if self.grow and share < 1 / 3:
            return min(self.longest, max(300, int(self.longest * (share * 3) ** 2)))
        return self.longest

    def __getitem__(self, step: int):
        rng = random.Random(f"training/{self.seed}/{step}")
        length = draw_length(rng, self.longest_at(step))
        count = max(len(KINDS), self.batch_tokens // (length + 120))
        drawn = [make_problem(KINDS[i % len(KINDS)], rng, length) for i in range(count)]
        ids, labels = pad_batch(drawn)
        until = seen_until(drawn, ids.shape[1], self.layers, self.hide, self.drop, rng)
        return ids, labels, until


def wrong_tokens(choice: torch.Tensor, labels: torch.Tensor) -> list[int]:
    """Of each row, how many learned tokens `choice` [n, tokens - 1] has not got right."""
    wanted = labels[:, 1:]
    return ((choice != wanted) & (wanted != IGNORED)).sum(dim=1).tolist()


@torch.no_grad()
def solved(
    model, problems, device: str, batch_tokens: int, hide: bool = False
) -> dict[str, dict[str, float]]:
    """Of each kind, the share of problems whose every token is the model's first choice, and the
    tokens that are not in a million. With `hide` no token is seen once it is of no more use."""
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    wrong = dict.fromkeys(KINDS, 0)
    ordered = sorted(problems, key=lambda problem: problem.chain_tokens)
    while ordered:
        count = max(1, batch_tokens // (ordered[-1].chain_tokens + 120))
        part, ordered = ordered[-count:], ordered[:-count]
        ids, labels = (t.to(device) for t in pad_batch(part))
        until = torch.full_like(ids, ids.shape[1]) if hide else None
        for row, problem in zip(until if hide else (), part):
            ends = torch.tensor(lifetimes(problem), device=device)
            row[: len(ends)] = ends
        every_layer = None if until is None else until.expand(len(model.model.layers), -1, -1)
        choice = logits_of(model, ids, every_layer).argmax(dim=-1)
        for problem, missed in zip(part, wrong_tokens(choice, labels), strict=True):
            right[problem.kind].append(missed == 0)
            wrong[problem.kind] += missed
    tokens = {kind: sum(p.chain_tokens for p in problems if p.kind == kind) for kind in KINDS}
    return {
        kind: {
            "solved": sum(found) / max(1, len(found)),
            "wrong": round(1e6 * wrong[kind] / max(1, tokens[kind]), 1),
        }
        for kind, found in right.items()
    }


def new_model(args: argparse.Namespace):
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(args.seed)
    if args.start:
        model = Qwen3ForCausalLM.from_pretrained(args.start, dtype=torch.float32).to(args.device)
        args.hidden, args.layers = model.config.hidden_size, model.config.num_hidden_layers
    else:
        model = Qwen3ForCausalLM(config(args.hidden, args.layers)).to(args.device)
    if args.compile:
        for layer in model.model.layers:  # alike: the first one's code serves all
            layer.compile(dynamic=True)
    return model


@functools.cache
def loss_weights(device: torch.device) -> torch.Tensor:
    return torch.tensor([WEIGHTS.get(token, 1.0) for token in TOKENS], device=device)


def logits_of(model, ids: torch.Tensor, until: torch.Tensor | None) -> torch.Tensor:
    """[n, width - 1, words], of tokens that see each other until `until` (`seen_until`)."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        if until is None:
            return model(input_ids=ids[:, :-1], use_cache=False).logits
        hidden = model.model.embed_tokens(ids[:, :-1])
        places = torch.arange(hidden.shape[1], device=ids.device)[None]
        rotations = model.model.rotary_emb(hidden, places)
        for layer, ends in zip(model.model.layers, until[:, :, :-1], strict=True):
            hidden = layer(
                hidden, attention_mask=visible(ends), position_embeddings=rotations, use_cache=False
            )
        return model.lm_head(model.model.norm(hidden))


def loss_of(
    model, ids: torch.Tensor, labels: torch.Tensor, until: torch.Tensor | None
) -> torch.Tensor:
    """Mean cross entropy of the tokens that are learned, some of which count more."""
    logits = logits_of(model, ids, until)
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(),
        labels[:, 1:].flatten(),
        weight=loss_weights(ids.device),
        ignore_index=IGNORED,
    )


def train(args: argparse.Namespace) -> None:
    """Train, and save at every look, so that a run that is stopped leaves a model."""
    device = args.device
    model = new_model(args)
    mean = copy.deepcopy(model).requires_grad_(False)
    averaged, parameters = list(mean.parameters()), list(model.parameters())
    approach = torch.optim.swa_utils.get_ema_multi_avg_fn(args.mean_decay)
    print(f"{sum(p.numel() for p in parameters) / 1e6:.2f} M parameters", flush=True)
    matrices = [p for p in parameters if p.dim() > 1]
    others = [p for p in parameters if p.dim() <= 1]
    groups = [dict(params=matrices, weight_decay=0.05), dict(params=others, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(
        groups, lr=args.lr, betas=(0.9, 0.98), fused=device == "cuda", eps=1e-9
    )
    warm = max(1, args.steps // 50)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda k: min((k + 1) / warm, 1.0) * max(0.02, 1 - max(0.0, k / args.steps - 0.3) / 0.7),
    )
    data = Batches(args)
    loader = DataLoader(
        data,
        batch_size=None,
        num_workers=args.workers,
        prefetch_factor=4 if args.workers else None,
        pin_memory=device == "cuda",
    )
    unseen = list(make_problems(10**6 + args.seed, args.check, args.longest))
    began, tokens, log = time.monotonic(), 0, []
    for step, batch in enumerate(loader):
        ids, labels, until = (
            part if part is None else part.to(device, non_blocking=True) for part in batch
        )
        loss = loss_of(model, ids, labels, until)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            approach(averaged, parameters, None)
        tokens += ids.numel()
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            seconds = time.monotonic() - began
            found = solved(mean, unseen, device, args.batch_tokens)
            log.append(dict(step=step + 1, loss=round(loss.item(), 6), s=round(seconds), **found))
            print(
                f"step {step + 1}/{args.steps} loss {loss.item():.5f} "
                f"{tokens / seconds / 1e3:.1f}k tokens/s {seconds:.0f} s: {as_words(found)}",
                flush=True,
            )
            if args.hide:
                log[-1]["hidden"] = solved(mean, unseen, device, args.batch_tokens, hide=True)
                print(f"  with hidden tokens: {as_words(log[-1]['hidden'])}", flush=True)
            save(mean, log, args)


def as_words(found: dict[str, dict[str, float]]) -> str:
    return ", ".join(
        f"{kind} solved {kinds['solved']:.1%}, {kinds['wrong']:g} wrong in a million"
        for kind, kinds in found.items()
    )


def save(model, log: list[dict], args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(args.out)
    save_tokenizer(args.out, CONTEXT_TOKENS)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    report = {"settings": settings, "log": log}
    (args.out / "training.json").write_text(json.dumps(report, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the model")
    add("--seed", type=int, default=1)
    add("--start", type=Path, help="go on from this model, at chains of all lengths")
    add("--hide", type=float, default=0.0, help="share of problems with tokens that are missing")
    add("--drop", type=float, default=0.0, help="share of tokens that a layer misses, with --hide")
    add("--steps", type=int, default=7500)
    add("--batch-tokens", type=int, default=32_768)
    add("--longest", type=int, default=MAX_CHAIN_TOKENS, help="tokens of the longest chains")
    add("--hidden", type=int, default=256)
    add("--layers", type=int, default=8)
    add("--lr", type=float, default=1.5e-3)
    add("--mean-decay", type=float, default=0.998)
    add("--every", type=int, default=250, help="steps between two looks at unseen problems")
    add("--check", type=int, default=300, help="unseen problems")
    add("--workers", type=int, default=8)
    add("--compile", action="store_true", help="compile a layer by torch.compile first")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    train(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
