# SPDX-License-Identifier: Apache-2.0
"""Time the decode kernel beside FlashInfer's paged decode, on one GPU; CSV and a table.

Every timing is a CUDA graph over several input sets that together exceed the L2 cache, replayed
until the clock settles: median with the 20th and 80th percentile, in microseconds a call. The rival
attends to the same scattered slots (page size 1) and scores nothing.

    python scripts/bench_kernels.py --csv build/kernels/kernels.csv [--quick] [--sweep]

`scripts/pack_results.py --add build/kernels --kind kernels` adds the run to docs/results.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import triton

from longflow_kernels import Novelty, RankRule
from longflow_kernels.attend_score_evict.arguments import DecodeStep, KVCache, RowState
from longflow_kernels.attend_score_evict.l2 import set_aside_l2
from longflow_kernels.attend_score_evict.launch import LaunchConfig, launch_config
from longflow_kernels.attend_score_evict.op import attend_score_evict
from longflow_kernels.attend_score_evict.rows import StepRow, pack_rows
from longflow_kernels.attend_score_evict.workspace import Workspace
from longflow_kernels.target import target_of

#: (query heads, KV heads, head_dim) and the model that has them.
SHAPES = {
    (32, 8, 128): "Llama-3.1-8B, Qwen3-8B",
    (16, 8, 128): "Qwen3-1.7B",
    (28, 4, 128): "Qwen2.5-7B",
    (64, 8, 128): "70B class",
}
GOALS = {128: 1.06, 32: 1.06, 8: 1.25, 1: 1.6}  # times FlashInfer's, full rows of 3,200
#: The default policy's rule, `longflow-novel`.
NOVEL = RankRule(
    first_tokens_kept=4,
    decay=0.95,
    novelty=Novelty(weight=16.0, level_share=0.2, recall_threshold=0.04, similarity_threshold=0.9),
)
GRAPH_CALLS = 24
SET_BYTES = 200 << 20  # an H100's L2 cache holds 50 MB


@dataclass(frozen=True)
class Timing:
    """Microseconds a call."""

    median: float
    p20: float
    p80: float


def measure(calls: list[Callable[[], object]], replays: int) -> Timing:
    """Time one call; `calls` differ in their input sets only.

    A graph holds at least GRAPH_CALLS of them, so that its own start does not count.
    """
    calls = calls * -(-GRAPH_CALLS // len(calls))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            for call in calls:
                call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    for _ in range(3):
        graph.replay()
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(replays)
    ]
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    times = sorted(1e3 * start.elapsed_time(end) / len(calls) for start, end in events)
    return Timing(statistics.median(times), times[len(times) // 5], times[-1 - len(times) // 5])


class Inputs:
    """Input sets of one shape: random slots of one pool, different in every set."""

    def __init__(self, shape: tuple[int, int, int], batch: int, row_tokens: int):
        self.heads, self.kv_heads, self.head_dim = shape
        self.batch, self.row_tokens = batch, row_tokens
        tokens = batch * row_tokens
        self.call_bytes = 2 * tokens * self.kv_heads * self.head_dim * 2
        self.num_sets = max(2, min(16, -(-SET_BYTES // self.call_bytes)))
        self.num_slots = tokens * self.num_sets
        cache = (self.num_slots, self.kv_heads, self.head_dim)
        options = dict(dtype=torch.bfloat16, device="cuda")
        self.k_cache = torch.randn(cache, **options)
        self.v_cache = torch.randn(cache, **options)
        self.q = torch.randn(batch, self.heads, self.head_dim, **options)
        self.k_new, self.v_new = torch.randn(2, batch, self.kv_heads, self.head_dim, **options)
        order = torch.randperm(self.num_slots, device="cuda").to(torch.int32)
        self.kv_indices = list(order.view(self.num_sets, tokens))
        self.sm_scale = self.head_dim**-0.5

    def longflow(
        self,
        *,
        full: bool = True,
        config: LaunchConfig,
        victim_heads: int = 1,
        remembers: bool = False,
        novel: bool = False,
    ):
        """With `remembers` rows as under `longflow-peak`, with `novel` as under `longflow-novel`;
        one in sixteen of the latter compares its keys, as in a server's step."""
        memory = dict(remembers=remembers, uses_novelty=novel)
        rows = [
            StepRow(self.row_tokens, full, full, **memory, written=100 + row if full else 0)
            for row in range(self.batch)
        ]
        capacity = self.batch * self.row_tokens
        workspace = Workspace(
            max_batch=self.batch,
            capacity_tokens=capacity,
            num_q_heads=self.heads,
            v_head_dim=self.head_dim,
            victim_heads=victim_heads,
            device="cuda",
            max_partials=self.batch * config.max_splits,
        )
        workspace.keep_in_l2(capacity)  # as a server does
        fields = pack_rows(rows, workspace.score_capacity).cuda()
        requests = torch.arange(self.batch, device="cuda")
        rule, state = self._rule_and_state(victim_heads, remembers, novel)
        cache = KVCache(self.k_cache, self.v_cache)

        def call(kv_indices):
            attend_score_evict(
                self.q,
                self.k_new,
                self.v_new,
                cache,
                DecodeStep(kv_indices, requests, fields, config),
                state,
                rule,
                workspace,
                scaling=self.sm_scale,
            )

        return [lambda s=s: call(s) for s in self.kv_indices]

    def _rule_and_state(
        self, victim_heads: int, remembers: bool, novel: bool
    ) -> tuple[RankRule, RowState]:
        next_slot = torch.zeros(self.batch, victim_heads, dtype=torch.int32, device="cuda")
        if not (remembers or novel):
            return RankRule(), RowState(next_slot)
        rule = NOVEL if novel else RankRule(decay=NOVEL.decay)
        values = torch.zeros(self.num_slots * rule.values_per_slot(victim_heads), device="cuda")
        if not novel:
            return rule, RowState(next_slot, slot_values=values)
        ring = torch.arange(1, 17, dtype=torch.int32, device="cuda")
        state = RowState(
            next_slot,
            recent=ring.expand(self.batch, 1, -1).contiguous(),
            slot_values=values,
            row_level=torch.full((self.batch,), 1e-3, device="cuda"),
            row_recall=torch.full((self.batch,), 0.04, device="cuda"),
            recall_pace=0.0,
        )
        return rule, state

    def flashinfer(self):
        import flashinfer

        set_aside_l2(0, torch.device("cuda"))  # the whole cache is the rival's
        scratch = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
        indptr = torch.arange(self.batch + 1, dtype=torch.int32, device="cuda") * self.row_tokens
        last_page = torch.ones(self.batch, dtype=torch.int32, device="cuda")
        cache = (self.k_cache.unsqueeze(1), self.v_cache.unsqueeze(1))
        out = torch.empty_like(self.q)
        calls = []
        for kv_indices in self.kv_indices:
            # As SGLang does for these groups: tensor cores.
            wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
                scratch, "NHD", use_tensor_cores=True
            )
            wrapper.plan(
                indptr,
                kv_indices,
                last_page,
                self.heads,
                self.kv_heads,
                self.head_dim,
                1,
                q_data_type=torch.bfloat16,
                kv_data_type=torch.bfloat16,
                sm_scale=self.sm_scale,
            )
            calls.append(lambda w=wrapper: w.run(self.q, cache, out=out))
        return calls

    def default_config(self) -> LaunchConfig:
        sms = torch.cuda.get_device_properties(0).multi_processor_count
        shared_bytes = target_of(self.q.device).shared_bytes
        return launch_config(
            self.batch, self.kv_heads, self.head_dim, sms, shared_bytes=shared_bytes
        )


def copy_rate(num_bytes: int = 1 << 31) -> float:
    """Bytes a second of a device-to-device copy, read and written.

    The better of the driver's copy and an elementwise kernel: on an H100 the first has been seen to
    move 2.44 TB/s, less than attention reads.
    """
    source = torch.randint(0, 2**31 - 1, (num_bytes // 4,), dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    ways = (lambda: target.copy_(source), lambda: torch.neg(source, out=target))
    best = min(measure([way], 20).median for way in ways)
    return 2 * num_bytes / (best * 1e-6)


def points(quick: bool):
    """(shape, batch, row_tokens), the goals' own first."""
    main = (32, 8, 128)
    yield from ((main, batch, 3200) for batch in (128, 32, 8, 1))
    if quick:
        return
    for shape in SHAPES:
        if shape != main:
            yield from ((shape, batch, 3200) for batch in (128, 32, 8, 1))
    yield from ((main, batch, rows) for rows in (1024, 1600, 8192) for batch in (128, 32, 1))


#: Slots of a tile, warps, stages, registers of a thread.
TILES = [
    (64, 4, 2, 128),
    (64, 4, 2, None),
    (64, 2, 3, None),
    (128, 4, 3, None),
    (128, 8, 3, 128),
]
#: Programs that score a row, how many slots of it at a time, how many heads, and their warps.
CHUNKS = [
    (16, 256, 8, 1),
    (16, 256, 16, 1),
    (16, 256, 32, 1),
    (8, 512, 8, 2),
    (4, 1024, 8, 4),
    (32, 128, 8, 1),
    (32, 128, 32, 1),
    (32, 128, 32, 4),
]


def tiles(base: LaunchConfig):
    """`base` with other tiles of attention."""
    for n, warps, stages, registers in TILES:
        yield replace(base, block_n=n, num_warps=warps, num_stages=stages, max_registers=registers)


def splits(base: LaunchConfig):
    """`base` with the rows split otherwise."""
    for share in (1, 2, 3, 6):
        yield replace(base, max_splits=min(64, max(1, base.max_splits * share // 4)))
    if base.max_splits > 8:
        yield replace(base, min_split_tokens=128)


def chunks(base: LaunchConfig):
    """`base` with the scores read otherwise."""
    for count, slots, voters, warps in CHUNKS:
        yield replace(base, chunks=count, chunk_slots=slots, voters=voters, choose_warps=warps)


def sweep(batches: list[int], replays: int) -> None:
    """Print how long the cuts of the work take for rows of 3,200, one thing after another: full
    rows, rows that still grow, and full rows under the default policy."""
    for batch in batches:
        inputs = Inputs((32, 8, 128), batch, 3200)
        rival = measure(inputs.flashinfer(), replays).median
        print(f"SWEEP batch={batch}: FlashInfer {rival:.1f} us; full, not full, novel, cut")
        base = inputs.default_config()
        for stage in (tiles, splits, chunks):
            found = {}
            for config in dict.fromkeys([base, *stage(base)]):
                try:
                    kinds = (dict(full=True), dict(full=False), dict(novel=True))
                    times = [
                        measure(inputs.longflow(config=config, **kind), replays).median
                        for kind in kinds
                    ]
                except triton.runtime.errors.OutOfResources as error:
                    print(f"batch {batch} {config}: {error}", file=sys.stderr)
                    continue
                found[config] = [time / rival for time in times]
            base = min(found, key=lambda config: sum(found[config]))
            for config, ratios in found.items():
                mark = "*" if config == base else " "
                text = " ".join(f"{ratio:.3f}x" for ratio in ratios)
                print(f"{mark} {text} {_text(config)}", flush=True)


def _text(config: LaunchConfig) -> str:
    return (
        f"{config.block_n} slots, {config.num_warps} warps, {config.num_stages} stages, "
        f"{config.max_registers} registers, {config.max_splits} splits of "
        f"{config.min_split_tokens}, {config.chunks} chunks of {config.chunk_slots}, "
        f"{config.voters} voters, {config.choose_warps} warps"
    )


def run(quick: bool, replays: int) -> list[dict]:
    """One line of results for each point."""
    rate = copy_rate()
    print(f"copy rate {rate / 1e12:.2f} TB/s, {torch.cuda.get_device_name()}")
    lines = []
    for shape, batch, row_tokens in points(quick):
        inputs = Inputs(shape, batch, row_tokens)
        config = inputs.default_config()
        rival = measure(inputs.flashinfer(), replays)
        full = measure(inputs.longflow(full=True, config=config), replays)
        growing = measure(inputs.longflow(full=False, config=config), replays)
        by_head = measure(
            inputs.longflow(full=True, config=config, victim_heads=inputs.kv_heads), replays
        )
        peak = measure(inputs.longflow(config=config, remembers=True), replays)
        novel = measure(inputs.longflow(config=config, novel=True), replays)
        line = {
            "heads": "/".join(map(str, shape)),
            "batch": batch,
            "row_tokens": row_tokens,
            **{f"flashinfer_{k}": round(v, 2) for k, v in asdict(rival).items()},
            **{f"longflow_{k}": round(v, 2) for k, v in asdict(full).items()},
            "not_full_median": round(growing.median, 2),
            "kv_head_median": round(by_head.median, 2),
            "peak_median": round(peak.median, 2),
            "novel_median": round(novel.median, 2),
            "full_ratio": round(full.median / rival.median, 3),
            "not_full_ratio": round(growing.median / rival.median, 3),
            "share_of_copy_rate": round(inputs.call_bytes / (full.median * 1e-6) / rate, 3),
        }
        lines.append(line)
        print(
            f"{line['heads']:>9} batch {batch:>3} rows {row_tokens}: FlashInfer "
            f"{rival.median:8.1f} us, full {full.median:8.1f} us ({line['full_ratio']:.3f}x), "
            f"not full {line['not_full_ratio']:.3f}x, by KV head {by_head.median:8.1f} us, "
            f"peak {peak.median:8.1f} us, novel {novel.median:8.1f} us, "
            f"{line['share_of_copy_rate']:.0%} of the copy rate",
            flush=True,
        )
        del inputs
        torch.cuda.empty_cache()
    return lines


def conditions() -> dict[str, str]:
    """What a reader of the numbers must know."""
    import flashinfer

    def output(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    driver = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    commit = output("git", "rev-parse", "--short", "HEAD") or "unknown"
    return {
        "device": torch.cuda.get_device_name(),
        "driver": f"driver {driver.splitlines()[0] if driver else 'unknown'}",
        "versions": f"PyTorch {torch.__version__}, Triton {triton.__version__}, "
        f"FlashInfer {flashinfer.__version__}",
        "date": datetime.date.today().isoformat(),
        "commit": f"commit {commit}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, help="results, a .json with the conditions beside")
    parser.add_argument("--quick", action="store_true", help="the goals' four points only")
    parser.add_argument("--sweep", action="store_true", help="compare cuts of the work instead")
    parser.add_argument("--batch", type=int, action="append", help="of --sweep; default: four")
    parser.add_argument("--replays", type=int, default=20)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_kernels: needs an NVIDIA GPU", file=sys.stderr)
        return 2
    if args.sweep:
        sweep(args.batch or [128, 32, 8, 1], args.replays)
        return 0
    lines = run(args.quick, args.replays)
    if args.csv:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with args.csv.open("w", newline="") as out:
            writer = csv.DictWriter(out, lines[0])
            writer.writeheader()
            writer.writerows(lines)
        noted = json.dumps(conditions(), indent=2) + "\n"
        args.csv.with_suffix(".json").write_text(noted)
    missed = [
        f"batch {line['batch']}: {line['full_ratio']}x, goal {GOALS[line['batch']]}x"
        for line in lines
        if line["heads"] == "32/8/128"
        and line["row_tokens"] == 3200
        and line["full_ratio"] > GOALS[line["batch"]]
    ]
    print("missed: " + "; ".join(missed) if missed else "every goal is met")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
