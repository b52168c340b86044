# SPDX-License-Identifier: Apache-2.0
"""Compile every kernel for GPUs that need not be there, and compare with what each has room for.

The operations themselves are called, with tensors that have a shape and no memory, and their launches
are compiled: tiles, options and constants are those of a server. Prints a table. ``--docs`` writes
docs/understand/kernel.md's, ``--check`` compares it. Ends with 1 if a kernel does not compile, or takes
more shared memory than its target has.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "kernels")]

import torch  # noqa: E402
import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.jit import create_function_from_signature  # noqa: E402

import longflow_kernels.target as target_module  # noqa: E402
from longflow_kernels.attend_score_evict import op as decode_op  # noqa: E402
from longflow_kernels.attend_score_evict.arguments import (  # noqa: E402
    DecodeStep,
    KVCache,
    RowState,
)
from longflow_kernels.attend_score_evict.launch import launch_config  # noqa: E402
from longflow_kernels.attend_score_evict.layout import NUM_FIELDS  # noqa: E402
from longflow_kernels.attend_score_evict.rule import Novelty, RankRule  # noqa: E402
from longflow_kernels.attend_score_evict.workspace import Workspace  # noqa: E402
from longflow_kernels.compress_prompt import op as prompt_op  # noqa: E402
from longflow_kernels.limits import HEAD_DIMS  # noqa: E402
from longflow_kernels.novelty import op as novelty_op  # noqa: E402

PAGE = ROOT / "docs" / "understand" / "kernel.md"
PLACE = re.compile(
    r"(<!-- compile_kernels.py: begin -->\n).*?(<!-- compile_kernels.py: end -->)", re.S
)
KIB = 1 << 10
SLOTS, ROWS, KV_HEADS = 300_000, 512, 8


@dataclass(frozen=True)
class Gpu:
    """A GPU to compile for.

    Attributes
    ----------
    target : GPUTarget
    cards : str
        Some that are it.
    shared_bytes : int
        Shared memory that one program may take (NVIDIA: CUDA C++ Programming Guide, "Compute
        Capabilities"; AMD: "LDS" of the CDNA 3 and CDNA 4 instruction set guides).
    units : int
        Multiprocessors, or compute units, of the first card.
    ran : bool
        The kernels have run on it (docs/results.md).
    """

    target: GPUTarget
    cards: str
    shared_bytes: int
    units: int
    ran: bool = False


GPUS = {
    "sm_90": Gpu(GPUTarget("cuda", 90, 32), "H100, H200", 227 * KIB, 132, ran=True),
    "sm_100": Gpu(GPUTarget("cuda", 100, 32), "B200", 227 * KIB, 148),
    "sm_120": Gpu(GPUTarget("cuda", 120, 32), "RTX PRO 6000, RTX 5090", 99 * KIB, 188),
    "gfx942": Gpu(GPUTarget("hip", "gfx942", 64), "MI300X, MI325X", 64 * KIB, 304),
    "gfx950": Gpu(GPUTarget("hip", "gfx950", 64), "MI350X, MI355X", 160 * KIB, 256),
}


@dataclass(frozen=True)
class Case:
    """A call whose launches are compiled.

    Attributes
    ----------
    head_dim, group, batch : int
    dtype : torch.dtype
    fp8 : bool
        Of the cache.
    policy : str
        Whose rule ranks: one of `POLICIES`, or ``prompt`` for a prompt's cut.
    """

    head_dim: int = 128
    group: int = 4
    batch: int = 32
    dtype: torch.dtype = torch.bfloat16
    fp8: bool = False
    policy: str = "longflow"

    @property
    def name(self) -> str:
        """As in the table."""
        kind = str(self.dtype).removeprefix("torch.").replace("bfloat", "bf").replace("float", "fp")
        cache = ", fp8 cache" if self.fp8 else ""
        if self.policy == "prompt":
            return f"head {self.head_dim}, {kind}{cache}"
        return f"head {self.head_dim}, {kind}{cache}, {self.policy}, batch {self.batch}"


NOVELTY = Novelty(weight=1.0, level_share=0.5, recall_threshold=0.1, similarity_threshold=0.8)
#: Rule, victims of a row and layer, protected tokens.
POLICIES = {
    "longflow": (RankRule(), 1, 0),
    "protected": (RankRule(first_tokens_kept=4), 1, 64),
    "by KV head": (RankRule(), KV_HEADS, 0),
    "longflow-peak": (RankRule(decay=0.99), 1, 0),
    "longflow-novel": (RankRule(decay=0.99, novelty=NOVELTY), 1, 16),
}


def cases() -> Iterator[Case]:
    """What a server may launch: every head size and dtype, every policy, batches of every cut."""
    novel = Case(policy="longflow-novel")
    for head_dim in HEAD_DIMS:
        for fp8 in (False, True):
            yield Case(head_dim=head_dim, fp8=fp8, policy="prompt")
            for batch in (32, 256):
                yield replace(novel, head_dim=head_dim, fp8=fp8, batch=batch)
    for dtype in (torch.float16, torch.float32):
        yield replace(novel, dtype=dtype)
        yield Case(dtype=dtype, policy="prompt")
    for policy in POLICIES:
        for batch in (1, 8, 128):
            yield Case(batch=batch, policy=policy)


@dataclass(frozen=True)
class Launch:
    """A kernel and what it is launched with, as `JITFunction.run` would get it."""

    kernel: Any
    arguments: dict[str, Any]


class Recorder:
    """Stands where a kernel does, and keeps its launches."""

    def __init__(self, kernel: Any, found: list[Launch]):
        self.kernel, self.found = kernel, found

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda **arguments: self.found.append(Launch(self.kernel, arguments))


def launches(case: Case, gpu: Gpu) -> list[Launch]:
    """The launches of a call on a GPU; none of its tensors has memory."""
    found: list[Launch] = []
    target = target_module.target_for(gpu.target, gpu.shared_bytes)
    with contextlib.ExitStack() as stack:
        for module in (decode_op, novelty_op, prompt_op):
            for name in [name for name in vars(module) if name.endswith("_kernel")]:
                recorder = Recorder(getattr(module, name), found)
                stack.enter_context(mock.patch.object(module, name, recorder))
        for module in (decode_op, target_module):
            stack.enter_context(mock.patch.object(module, "target_of", lambda device: target))
        with torch.device("meta"):
            (_cut_prompts if case.policy == "prompt" else _decode)(case, gpu, target)
    return found


def _cache_dtype(case: Case, target: target_module.Target) -> torch.dtype:
    return target.fp8[-1] if case.fp8 else case.dtype


def _decode(case: Case, gpu: Gpu, target: target_module.Target) -> None:
    rule, victim_heads, recent = POLICIES[case.policy]
    q_heads, head_dim = KV_HEADS * case.group, case.head_dim
    cache_dtype = _cache_dtype(case, target)
    new = torch.empty(case.batch, KV_HEADS, head_dim, dtype=case.dtype)
    pool = torch.empty(SLOTS, KV_HEADS, head_dim, dtype=cache_dtype)
    fields = torch.empty(NUM_FIELDS, case.batch, dtype=torch.int32)
    requests = torch.empty(case.batch, dtype=torch.int64)
    kv_indices = torch.empty(case.batch * 3200, dtype=torch.int32)
    table = torch.empty(ROWS, 40_960, dtype=torch.int32)
    decode_op.gather_kv_indices(table, requests, fields, kv_indices)
    remembers = bool(rule.remembers)
    values = torch.empty(SLOTS * rule.values_per_slot(victim_heads)) if remembers else None
    state = RowState(
        next_slot=torch.empty(ROWS, victim_heads, dtype=torch.int32),
        recent=torch.empty(ROWS, victim_heads, recent, dtype=torch.int32) if recent else None,
        slot_values=values,
        row_level=torch.empty(ROWS) if rule.novelty else None,
        row_recall=torch.empty(ROWS) if rule.novelty else None,
    )
    workspace = Workspace(
        max_batch=ROWS,
        capacity_tokens=SLOTS,
        num_q_heads=q_heads,
        v_head_dim=head_dim,
        victim_heads=victim_heads,
        device="meta",
        max_partials=4 * gpu.units,
    )
    config = launch_config(
        case.batch,
        KV_HEADS,
        head_dim,
        gpu.units,
        itemsize=cache_dtype.itemsize,
        shared_bytes=target.shared_bytes,
    )
    decode_op.attend_score_evict(
        torch.empty(case.batch, q_heads, head_dim, dtype=case.dtype),
        new,
        new,
        KVCache(pool, pool),
        DecodeStep(kv_indices, requests, fields, config),
        state,
        rule,
        workspace,
        scaling=head_dim**-0.5,
    )


def _cut_prompts(case: Case, gpu: Gpu, target: target_module.Target) -> None:
    window = 32
    prompts = prompt_op.pack_prompts([prompt_op.Prompt(0, 8000, 0)] * 2, "meta")
    prompt_op.paged_prompt_mass(
        torch.empty(window * 2, KV_HEADS * case.group, case.head_dim, dtype=case.dtype),
        window,
        torch.empty(SLOTS, KV_HEADS, case.head_dim, dtype=_cache_dtype(case, target)),
        torch.empty(ROWS, 40_960, dtype=torch.int32),
        prompts,
        scaling=case.head_dim**-0.5,
    )


@dataclass(frozen=True)
class Found:
    """What came out for one kernel; None where the compiler does not say."""

    gpu: str
    kernel: str
    case: str
    shared_bytes: int = 0
    registers: int | None = None
    spilled_bytes: int | None = None
    async_copies: int = 0
    error: str = ""
    seconds: float = 0

_DONE: dict[Any, Found] = {}


def source(launch: Launch, target: GPUTarget) -> tuple[Any, Any]:
    """(source, options) as `JITFunction.run` makes them.

    Raises
    ------
    KeyError
        An option of the launch that Triton does not have for this target.
    """
    kernel, backend = launch.kernel, triton.compiler.make_backend(target)
    arguments = {"debug": False, "instrumentation_mode": "", **launch.arguments}
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = binder(**arguments)
    options, signature, constants, attributes = kernel._pack_args(
        backend, arguments, bound, specialization, options
    )
    return triton.compiler.ASTSource(kernel, signature, constants, attributes), options


def compiled(launch: Launch, gpu: str, case: str) -> Found:
    """One kernel, compiled down to the GPU's own code."""
    found = Found(gpu, launch.kernel.__name__, case)
    target = GPUS[gpu].target
    log = io.StringIO()
    start=time.monotonic()
    try:
        made_from, options = source(launch, target)
        key = (gpu, made_from.hash(), options.hash())
        if key in _DONE:
            return replace(_DONE[key], case=case)
        triton.knobs.nvidia.dump_ptxas_log = True
        triton.knobs.compilation.always_compile = True  # the log is part of what is looked at
        with contextlib.redirect_stdout(log):
            made = triton.compile(made_from, target=target, options=options.__dict__)
    except Exception as error:  # whatever the compiler raises is what is wrong with the kernel
        return replace(found, error=f"{type(error).__name__}: {error}".splitlines()[0])
    if target.backend == "cuda":
        registers = re.search(r"Used (\d+) registers", log.getvalue())
        spilled = re.search(r"(\d+) bytes spill stores", log.getvalue())
        spilled_bytes = int(spilled[1]) if spilled else None
    else:
        assembly = made.asm["amdgcn"]
        registers = re.search(r"\.vgpr_count: +(\d+)", assembly)
        spilled = re.search(r"\.vgpr_spill_count: +(\d+)", assembly)
        spilled_bytes = 4 * int(spilled[1]) if spilled else None
    _DONE[key] = replace(
        found,
        shared_bytes=made.metadata.shared,
        registers=int(registers[1]) if registers else None,
        spilled_bytes=spilled_bytes,
        async_copies=made.asm["ttgir"].count("async_copy_global_to_local"),
        seconds=time.monotonic()-start,
    )
    return _DONE[key]


def compiled_case(job: tuple[str, Case]) -> list[Found]:
    """What a call launches on a GPU, in a worker: launches do not travel between processes."""
    gpu, case = job
    return [compiled(launch, gpu, case.name) for launch in launches(case, GPUS[gpu])]


def main() -> int:
    import time
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", choices=GPUS, action="append", help="only for this one")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="a line for each kernel")
    options = parser.parse_args()
    jobs = [(gpu, case) for gpu in options.gpu or GPUS for case in cases()]
    with ProcessPoolExecutor(options.workers) as pool:
        found = [one for some in pool.map(compiled_case, jobs) for one in some]
    for one in found:
        print(json.dumps(asdict(one)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
