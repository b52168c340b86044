# SPDX-License-Identifier: Apache-2.0
"""Compile every kernel for GPUs that need not be there, and compare with what each has room for.

The operations themselves are called, with tensors that have a shape and no memory, and their
launches are compiled: tiles, options and constants are those of a server. Prints a table.
``--docs`` writes the one in docs/understand/kernel.md, ``--check`` compares it. Ends with 1 if a
kernel does not compile, or takes more shared memory than its target has.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import json
import os
import re
import sys
import tempfile
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
USED, SPILLED = re.compile(r"Used (\d+) registers"), re.compile(r"(\d+) bytes spill stores")
VGPRS = re.compile(r"\.vgpr_count: +(\d+)")
SPILLED_VGPRS = re.compile(r"\.vgpr_spill_count: +(\d+)")
#: Variables that give Triton another compiler than its own. FlashInfer, once imported, sets the
#: first where there is a ptxas of CUDA 13, and children inherit it; torch sets the second.
OTHER_TOOLS = ("TRITON_PTXAS_BLACKWELL_PATH", "TRITON_PTXAS_PATH", "TRITON_LIBDEVICE_PATH")
#: Options of a launch, among its arguments.
OPTIONS = ("num_warps", "num_stages", "maxnreg", "launch_pdl")
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
    ran : str
        Triton's version with which the kernels have run on it (docs/results.md), if they have.
    """

    target: GPUTarget
    cards: str
    shared_bytes: int
    units: int
    ran: str = ""


GPUS = {
    "sm_90": Gpu(GPUTarget("cuda", 90, 32), "H100, H200", 227 * KIB, 132, ran="3.6 and 3.8"),
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


def cases(every: bool) -> Iterator[Case]:
    """What a server may launch; `every` head size with every dtype and cut, or the largest of them.

    Batches of 1 and 8 are split and limit their registers, one of 256 takes the largest tiles.
    """
    novel = Case(policy="longflow-novel")
    for head_dim in HEAD_DIMS:
        for fp8 in (False, True) if every or head_dim >= 128 else (False,):
            yield Case(head_dim=head_dim, fp8=fp8, policy="prompt")
            for batch in (32, 256) if every or not fp8 else (256,):
                yield replace(novel, head_dim=head_dim, fp8=fp8, batch=batch)
    for dtype in (torch.float16, torch.float32) if every else (torch.float32,):
        yield replace(novel, dtype=dtype)
        yield Case(dtype=dtype, policy="prompt")
    for policy in POLICIES:
        for batch in (1, 8, 128) if every else (8,):
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
    """What came out for one kernel.

    Attributes
    ----------
    gpu, kernel, case : str
    shared_bytes : int
    registers, spilled_bytes : int
        Of a thread: ptxas's registers and spill stores, or AMD's vector registers.
    async_copies : int
        Loads to shared memory that run ahead of their use.
    error : str
        What the compiler says, if it refuses.
    """

    gpu: str
    kernel: str
    case: str
    shared_bytes: int = 0
    registers: int = 0
    spilled_bytes: int = 0
    async_copies: int = 0
    error: str = ""


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
    try:
        made_from, options = source(launch, target)
        with contextlib.redirect_stdout(log), triton.knobs.nvidia.scope():
            triton.knobs.nvidia.dump_ptxas_log = True
            triton.knobs.compilation.always_compile = True  # a cache keeps no log
            made = triton.compile(made_from, target=target, options=options.__dict__)
    except Exception as error:  # whatever the compiler raises is what is wrong with the kernel
        return replace(found, error=f"{type(error).__name__}: {error}".splitlines()[0])
    if target.backend == "cuda":
        report, registers, spilled, unit = log.getvalue(), USED, SPILLED, 1
    else:
        report, registers, spilled, unit = made.asm["amdgcn"], VGPRS, SPILLED_VGPRS, 4
    return replace(
        found,
        shared_bytes=made.metadata.shared,
        registers=int(registers.search(report)[1]),
        spilled_bytes=unit * int(spilled.search(report)[1]),
        async_copies=made.asm["ttgir"].count("async_copy_global_to_local"),
    )


def jobs_of(gpu: str, every: bool) -> Iterator[tuple[str, Case, int]]:
    """(GPU, case, place among its launches) of each kernel, none twice."""
    seen = set()
    for case in cases(every):
        for place, launch in enumerate(launches(case, GPUS[gpu])):
            given = {
                key: (value.dtype, value.untyped_storage().size() >> 31 > 0)
                if isinstance(value, torch.Tensor)
                else value
                for key, value in launch.arguments.items()
                if key.isupper() or key in OPTIONS or isinstance(value, torch.Tensor)
            }
            key = repr((launch.kernel.__name__, given))
            if key not in seen:
                seen.add(key)
                yield gpu, case, place


def compiled_job(job: tuple[str, Case, int]) -> Found:
    """In a worker: launches do not travel between processes."""
    gpu, case, place = job
    return compiled(launches(case, GPUS[gpu])[place], gpu, case.name)


def problems(found: list[Found]) -> list[str]:
    """A line for each kernel that does not compile or does not fit."""
    lines = []
    for one in found:
        limit, where = GPUS[one.gpu].shared_bytes, f"{one.gpu}: {one.kernel}, {one.case}"
        if one.error:
            lines.append(f"{where}: {one.error}")
        elif one.shared_bytes > limit:
            lines.append(f"{where}: {one.shared_bytes:,} bytes of shared memory, {limit:,} there")
    return lines


def _markdown(rows: list[tuple[str, ...]]) -> str:
    rows = [rows[0], ("---",) * len(rows[0]), *rows[1:]]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def page_table(found: list[Found]) -> str:
    """What docs/understand/kernel.md says of the targets."""
    head = ("Target", "Cards", "State", "Shared memory, most taken", "there")
    rows = [(*head, "Registers of a thread, most", "Spilled, most")]
    for name, gpu in GPUS.items():
        here = [one for one in found if one.gpu == name]
        rows.append(
            (
                name,
                gpu.cards,
                f"run with Triton {gpu.ran}" if gpu.ran else "compiled, not run",
                f"{max(one.shared_bytes for one in here):,} B",
                f"{gpu.shared_bytes:,} B",
                str(max(one.registers for one in here)),
                f"{max(one.spilled_bytes for one in here):,} B",
            )
        )
    kernels = [("Shared memory / spilled, bytes", *GPUS)]
    for kernel in dict.fromkeys(one.kernel for one in found):
        cells = []
        for name in GPUS:
            here = [one for one in found if (one.gpu, one.kernel) == (name, kernel)]
            shared = max(one.shared_bytes for one in here)
            cells.append(f"{shared:,} / {max(one.spilled_bytes for one in here):,}")
        kernels.append((f"`{kernel}`", *cells))
    return (
        f"With Triton {triton.__version__}:\n\n{_markdown(rows)}\n"
        f"The most over all shapes, by kernel:\n\n{_markdown(kernels)}"
    )


def write_page(found: list[Found], check: bool) -> None:
    """Write the table into the page, or compare."""
    old = PAGE.read_text(encoding="utf-8")
    new, places = PLACE.subn(lambda place: place[1] + page_table(found) + place[2], old)
    if places != 1:
        sys.exit(f"{PAGE.relative_to(ROOT)} has no place for the table of targets")
    if not check:
        PAGE.write_text(new, encoding="utf-8")
    elif new != old:
        lines = difflib.unified_diff(old.splitlines(), new.splitlines(), "page", "now", "", "", 0)
        sys.exit(
            "\n".join(lines) + f"\n{PAGE.relative_to(ROOT)} is out of date: "
            f"run python scripts/compile_kernels.py --docs"
        )


def show(found: list[Found]) -> None:
    """Print a line for each kernel."""
    width = max(len(one.case) for one in found)
    print(f"{'':8}{'kernel':23}{'case':{width}}  registers  spilled   shared")
    for one in found:
        sizes = f"{one.registers:9}  {one.spilled_bytes:7,}  {one.shared_bytes:7,}"
        print(f"{one.gpu:8}{one.kernel:23}{one.case:{width}}  {one.error or sizes}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", choices=GPUS, action="append", help="only for this one")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every", action="store_true", help="every shape, which takes minutes")
    parser.add_argument("--json", action="store_true", help="a JSON line for each kernel")
    parser.add_argument("--docs", action="store_true", help="write the table of the page")
    parser.add_argument("--check", action="store_true", help="compare the table of the page")
    options = parser.parse_args()
    whole = not options.gpu and not options.every
    if (options.docs or options.check) and not whole:
        parser.error("the table of the page is that of a run without --gpu and --every")
    for name in OTHER_TOOLS:
        os.environ.pop(name, None)
    jobs = [job for gpu in options.gpu or GPUS for job in jobs_of(gpu, options.every)]
    with (
        tempfile.TemporaryDirectory() as cache,
        mock.patch.dict(os.environ, TRITON_CACHE_DIR=cache),
        ProcessPoolExecutor(options.workers) as pool,
    ):
        found = list(pool.map(compiled_job, jobs))
    if options.json:
        for one in found:
            print(json.dumps(asdict(one)))
    else:
        show(found)
    wrong = problems(found)
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong and (options.docs or options.check):
        write_page(found, options.check)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
