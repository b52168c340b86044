# SPDX-License-Identifier: Apache-2.0
"""Random decode steps on scattered slots, everything a row does not own poisoned."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

import torch

from longflow_kernels import Novelty, RankRule
from longflow_kernels.attend_score_evict.arguments import DecodeStep, KVCache, RowState
from longflow_kernels.attend_score_evict.launch import LaunchConfig
from longflow_kernels.attend_score_evict.op import attend_score_evict
from longflow_kernels.attend_score_evict.reference import (
    ReferenceStep,
    attend_score_evict_reference,
)
from longflow_kernels.attend_score_evict.rows import StepRow, pack_rows, score_capacity
from longflow_kernels.attend_score_evict.workspace import Workspace

#: Whether this run's kernels are interpreted on the CPU (tests/conftest.py decides alike).
INTERPRETED = os.environ.get("LONGFLOW_TEST_DEVICE", "cpu") == "cpu"
#: Small tiles, so that short rows still have several splits, tiles and chunks.
SMALL = LaunchConfig(
    block_n=16,
    max_splits=4,
    min_split_tokens=16,
    chunks=2,
    chunk_slots=32,
    num_warps=4,
    num_stages=2,
)


#: Of rows that use novelty; their recall is up to twice the threshold.
NOVELTY = Novelty(weight=3.0, level_share=0.3, recall_threshold=0.2, similarity_threshold=0.75)


#: Tensors that a step updates in place.
WRITTEN = ("k_cache", "v_cache", "next_slot", "recent", "slot_values", "row_level", "row_recall")


@dataclass
class DecodeCase:
    """One step of one layer. `run` and `reference` leave the case as it was."""

    rows: list[StepRow]
    num_q_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    victim_heads: int = 1
    dtype: torch.dtype = torch.float32
    cache_dtype: torch.dtype | None = None
    logit_cap: float = 0.0
    k_scale: float = 1.0
    v_scale: float = 1.0
    protect_sink_tokens: int = 0
    protect_recent_tokens: int = 0
    decay: float = 0.9
    peak: float = 1.0
    device: str = "cpu"
    seed: int = 0
    config: LaunchConfig = SMALL
    tensors: dict = field(init=False, repr=False)

    def __post_init__(self):
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape, dtype=self.dtype):
            return torch.randn(*shape, generator=generator).to(dtype).to(self.device)

        batch, heads, dim = len(self.rows), self.num_kv_heads, self.head_dim
        num_rows = batch + 3
        width = max([row.kv_len for row in self.rows], default=0) + 5
        num_slots = num_rows * width + 7
        self.num_slots = num_slots
        scattered = torch.randperm(num_slots, generator=generator)[: num_rows * width]
        req_to_token = scattered.view(num_rows, width).to(torch.int32)
        requests = torch.randperm(num_rows, generator=generator)[:batch]
        cache_dtype = self.cache_dtype or self.dtype
        k = torch.full((num_slots, heads, dim), float("nan"))
        v = torch.full((num_slots, heads, dim), float("nan"))
        next_slot = torch.full((num_rows, self.victim_heads), -7, dtype=torch.int32)
        recent = torch.full(
            (num_rows, self.victim_heads, self.protect_recent_tokens), -7, dtype=torch.int32
        )
        for request, row in zip(requests.tolist(), self.rows):
            if not row.kv_len:
                continue
            held = row.kv_len if row.overwrites else row.kv_len - 1
            own = req_to_token[request, :held].long()
            k[own] = torch.randn(held, heads, dim, generator=generator) * self.peak
            v[own] = torch.randn(held, heads, dim, generator=generator)
            if row.overwrites:
                for head in range(self.victim_heads):
                    order = torch.randperm(row.kv_len, generator=generator).to(torch.int32)
                    next_slot[request, head] = order[0]
                    # What is overwritten may be anything by now.
                    group = heads // self.victim_heads
                    part = slice(head * group, (head + 1) * group)
                    k[own[order[0]], part] = float("nan")
                    v[own[order[0]], part] = float("nan")
                    if self.protect_recent_tokens and row.scored:
                        recent[request, head] = order[1 : 1 + self.protect_recent_tokens]
        k_new, v_new = normal(batch, heads, dim), normal(batch, heads, dim)
        if self.device == "cpu" and cache_dtype.itemsize == 1:
            # Triton 3.6's interpreter loses the carry when rounding to fp8 raises the exponent.
            k_new = (k_new / self.k_scale).to(cache_dtype).to(self.dtype) * self.k_scale
            v_new = (v_new / self.v_scale).to(cache_dtype).to(self.dtype) * self.v_scale
        self.tensors = dict(
            q=normal(batch, self.num_q_heads, dim),
            k_new=k_new,
            v_new=v_new,
            k_cache=(k / self.k_scale).to(cache_dtype).to(self.device),
            v_cache=(v / self.v_scale).to(cache_dtype).to(self.device),
            kv_indices=torch.cat(
                [
                    req_to_token[request, : row.kv_len]
                    for request, row in zip(requests.tolist(), self.rows)
                ]
                or [req_to_token[0, :0]]
            ).to(self.device),
            req_pool_indices=requests.to(self.device),
            fields=pack_rows(self.rows, score_capacity(num_slots, max(1, batch))).to(self.device),
            next_slot=next_slot.to(self.device),
        )
        # Of rows that have overwritten twice; everything else may be anything.
        self.slot_values = None
        self.uses_novelty = any(row.uses_novelty for row in self.rows)
        if any(row.remembers or row.uses_novelty for row in self.rows):
            values_per_slot = 2 if self.uses_novelty else self.victim_heads
            best = torch.full((num_slots, values_per_slot), float("nan"))
            for request, row in zip(requests.tolist(), self.rows):
                if (row.remembers or row.uses_novelty) and row.written > 1:
                    own = req_to_token[request, : row.kv_len].long()
                    random = torch.rand(row.kv_len, self.victim_heads, generator=generator)
                    best[own, : self.victim_heads] = random * dim / row.kv_len * 2
                    if row.uses_novelty:
                        best[own, 1] = torch.rand(row.kv_len, generator=generator)
                    for head in range(self.victim_heads):
                        best[own[next_slot[request, head]], head :: self.victim_heads] = float(
                            "nan"
                        )
            self.slot_values = best.flatten().to(self.device)
        # About what a row's mean is, and different for each.
        level = (0.5 + torch.rand(num_rows, generator=generator)) * dim / width
        self.row_level = level.to(self.device) if self.uses_novelty else None
        recall = 2 * NOVELTY.recall_threshold * torch.rand(num_rows, generator=generator)
        self.row_recall = recall.to(self.device) if self.uses_novelty else None
        self.recent = recent.to(self.device) if self.protect_recent_tokens else None

    def rule(self) -> RankRule:
        novelty = NOVELTY if self.uses_novelty else None
        return RankRule(self.protect_sink_tokens, self.decay, novelty)

    def copies(self) -> dict:
        """The step's tensors by name; those that a step writes are copies."""
        given = dict(
            self.tensors,
            recent=self.recent,
            slot_values=self.slot_values,
            row_level=self.row_level,
            row_recall=self.row_recall,
        )
        return {
            name: value.clone() if name in WRITTEN and value is not None else value
            for name, value in given.items()
        }

    def arguments(self, tensors: dict) -> dict:
        """What `attend_score_evict` and its reference take, `tensors` being from `copies`."""
        t = tensors
        return dict(
            q=t["q"],
            k_new=t["k_new"],
            v_new=t["v_new"],
            cache=KVCache(t["k_cache"], t["v_cache"], self.k_scale, self.v_scale),
            step=DecodeStep(t["kv_indices"], t["req_pool_indices"], t["fields"], self.config),
            state=RowState(
                t["next_slot"],
                t["recent"],
                t["slot_values"],
                t["row_level"],
                t["row_recall"],
                recall_pace=0.1,
            ),
            rule=self.rule(),
            scaling=self.head_dim**-0.5,
            logit_cap=self.logit_cap,
        )

    def workspace(self) -> Workspace:
        """A workspace of the smallest size that fits, full of NaN."""
        batch = len(self.rows)
        made = Workspace(
            max_batch=max(1, batch),
            capacity_tokens=self.num_slots,
            num_q_heads=self.num_q_heads,
            v_head_dim=self.head_dim,
            victim_heads=self.victim_heads,
            device=self.device,
            max_partials=max(1, batch * self.config.max_splits),
        )
        for tensor in (
            made.partial_out,
            made.partial_lse,
            made.tile_peak,
            made.best_score,
            made.chunk_sums,
        ):
            tensor.fill_(float("nan"))
        made.scores.fill_(0)  # the most tempting score
        made.l2_capacity = 200  # of some rows, so that both ways to store are run
        return made

    def run(self, workspace: Workspace | None = None) -> tuple[torch.Tensor, dict]:
        """(out, the tensors by name after the call)."""
        tensors = self.copies()
        workspace = workspace or self.workspace()
        return attend_score_evict(**self.arguments(tensors), workspace=workspace), tensors

    def reference(self) -> tuple[ReferenceStep, dict]:
        """(result, the tensors by name after the call), on the CPU."""
        tensors = {
            name: None if value is None else value.cpu() for name, value in self.copies().items()
        }
        return attend_score_evict_reference(**self.arguments(tensors)), tensors

    def alone(self, index: int) -> DecodeCase:
        """The same step with one of the rows only."""
        case = replace(self, rows=[self.rows[index]])
        for name in ("q", "k_new", "v_new", "req_pool_indices"):
            case.tensors[name] = self.tensors[name][index : index + 1].clone()
        for name in ("k_cache", "v_cache", "next_slot"):
            case.tensors[name] = self.tensors[name]
        start = sum(row.kv_len for row in self.rows[:index])
        case.tensors["kv_indices"] = self.tensors["kv_indices"][start:].clone()
        case.recent, case.num_slots = self.recent, self.num_slots
        case.slot_values, case.uses_novelty = self.slot_values, self.uses_novelty
        case.row_level, case.row_recall = self.row_level, self.row_recall
        return case


#: Scores are kept with 9 bits of mantissa: two of them may seem equal within one step.
SCORE_STEP = 2**-9
#: Scores so much smaller than the row's largest are equally useless to the kernel.
SCORE_FLOOR = 2.0**-100


def assert_step(case: DecodeCase, *, tolerance: float, score_rounding: float) -> None:
    """Compare a run with the float64 oracle.

    The chosen victim must be the oracle's unless its score is within `score_rounding` and a step
    (both relative) of the oracle's lowest. All memory a row does not write must keep its bytes.
    """
    out, got = case.run()
    expected, want = case.reference()
    worst = (out.cpu().double() - expected.out).abs().max().item() if len(case.rows) else 0.0
    assert worst <= tolerance, f"output is {worst} off"
    for name in ("k_cache", "v_cache"):
        raw_got, raw_want = (
            side[name].cpu().contiguous().view(torch.uint8) for side in (got, want)
        )
        assert torch.equal(raw_got, raw_want), name
    victims, wanted = got["next_slot"].cpu(), want["next_slot"]
    scored = {int(case.tensors["req_pool_indices"][i]): s for i, s in expected.scores.items()}
    for request in range(victims.shape[0]):
        if request not in scored:
            assert torch.equal(victims[request], wanted[request])
            continue
        for head in range(victims.shape[1]):
            scores = scored[request][head]
            lowest, chosen = scores.min().item(), scores[victims[request, head]].item()
            limit = lowest * (1 + score_rounding + SCORE_STEP) + SCORE_FLOOR * scores.max().item()
            assert chosen <= limit, (request, head, chosen, lowest)
    if case.recent is not None:
        assert torch.equal(got["recent"].cpu(), want["recent"])
    if case.uses_novelty:
        # A score that is rounded may be on the other side of the level.
        for name in ("row_level", "row_recall"):
            torch.testing.assert_close(
                got[name].cpu(), want[name], rtol=score_rounding + SCORE_STEP, atol=1e-9
            )
    if case.slot_values is not None:
        # Codes are a step apart, and the smallest scores are as good as 0.
        slot_values, wanted = got["slot_values"].cpu(), want["slot_values"]
        torch.testing.assert_close(
            slot_values, wanted, rtol=score_rounding + SCORE_STEP, atol=1e-9, equal_nan=True
        )
