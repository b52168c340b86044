# SPDX-License-Identifier: Apache-2.0
"""Compile the kernels for an H100 on a machine without one; prints a JSON line for each.

Run in a separate process: the tests' process has Triton's interpreter on.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from longflow_kernels.attend_score_evict.attend import attend_kernel
from longflow_kernels.attend_score_evict.combine import combine_kernel
from longflow_kernels.attend_score_evict.gather import gather_indices_kernel
from longflow_kernels.attend_score_evict.launch import launch_config
from longflow_kernels.attend_score_evict.op import OUT_VALUES
from longflow_kernels.compress_prompt import kernel as prompt
from longflow_kernels.compress_prompt.op import COMBINE_ROWS, MAX_CHUNKS
from longflow_kernels.novelty.kernel import similarity_kernel
from longflow_kernels.novelty.reference import COMPARED_TOKENS

PTXAS = Path(triton.backends.nvidia.__file__).parent / "bin" / "ptxas"
POINTERS = {
    "kv_indices_ptr": "*i32",
    "slot_table_ptr": "*i32",
    "req_to_token_ptr": "*i32",
    "req_pool_indices_ptr": "*i64",
    "fields_ptr": "*i32",
    "next_slot_ptr": "*i32",
    "recent_ptr": "*i32",
    "best_index_ptr": "*i32",
    "arrived_ptr": "*i32",
    "scores_ptr": "*i16",
    "q_ptr": "*{dtype}",
    "k_new_ptr": "*{dtype}",
    "v_new_ptr": "*{dtype}",
    "out_ptr": "*{dtype}",
    "k_cache_ptr": "*{cache}",
    "v_cache_ptr": "*{cache}",
}
FLOATS = ("scaling", "logit_cap", "k_scale", "v_scale", "decay", "novelty_weight", "novelty_span")
FLOATS += ("level_share", "level_pace", "lowest_level", "recall_threshold", "recall_first")
FLOATS += ("recall_pace",)
#: Arguments of `combine_kernel` that are None without novelty.
OF_NOVELTY = ("row_level_ptr", "row_recall_ptr", "novelty_weight", "novelty_span", "level_share")
OF_NOVELTY += ("recall_threshold", "recall_first")


def build(
    function,
    constants: dict,
    num_warps: int,
    num_stages: int,
    dtype: str,
    cache: str,
    max_registers: int | None = None,
):
    """(registers, bytes spilled, shared memory, asynchronous copies) on sm_90."""
    signature, attributes = {}, {}
    for index, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = POINTERS.get(name, "*fp32").format(dtype=dtype, cache=cache)
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif name in FLOATS:
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            if name in (
                "q_stride",
                "k_new_stride",
                "v_new_stride",
                "k_slot_stride",
            ):
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    options = dict(num_warps=num_warps, num_stages=num_stages, maxnreg=max_registers)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(made.asm["ptx"])  # it names the limit of registers, if there is one
        command = [PTXAS, "-v", "-arch=sm_90a", ptx, "-o", Path(folder) / "kernel.cubin"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return dict(
        registers=int(re.search(r"Used (\d+) registers", report).group(1)),
        spilled=int(re.search(r"(\d+) bytes spill stores", report).group(1)),
        shared=made.metadata.shared,
        async_copies=made.asm["ttgir"].count("async_copy_global_to_local"),
    )


def attend(
    head_dim: int, group: int, dtype: str, cache: str, batch: int = 32, beside: bool = False
):
    config = launch_config(batch, 8, head_dim, 132, itemsize=1 if cache != dtype else 2)
    constants = dict(
        GROUP=group,
        HEAD_DIM=head_dim,
        V_HEAD_DIM=head_dim,
        K_SLOT_STRIDE=8 * head_dim,
        V_SLOT_STRIDE=8 * head_dim,
        BLOCK_H=16,
        BLOCK_D=triton.next_power_of_2(head_dim),
        BLOCK_DV=triton.next_power_of_2(head_dim),
        BLOCK_N=config.block_n,
        VICTIM_HEADS=1,
        HAS_CAP=False,
        DOT_PRECISION="ieee",
        DEPENDENT=True,
        BESIDE=beside,
    )
    return build(
        attend_kernel,
        constants,
        config.num_warps,
        config.num_stages,
        dtype,
        cache,
        config.max_registers,
    )


def combine(heads: int, victim_heads: int, recent: int, batch: int = 32, **options):
    """`memory`: with slot values; `novelty`: with them and novelty."""
    memory, novelty = options.get("memory", False), options.get("novelty", False)
    config = launch_config(batch, 8, 128, 132)
    splits = triton.next_power_of_2(config.max_splits)
    constants = dict(
        NUM_Q_HEADS=heads,
        V_HEAD_DIM=128,
        BLOCK_DV=128,
        BLOCK_N=config.block_n,
        MAX_SPLITS=config.max_splits,
        BLOCK_S=splits,
        VICTIM_HEADS=victim_heads,
        BLOCK_V=min(config.voters, triton.next_power_of_2(heads // victim_heads)),
        CHUNKS=config.chunks,
        TILES=config.chunk_slots // config.block_n,
        OUT_HEADS=max(1, OUT_VALUES * config.choose_warps // (128 * splits)),
        RECENT=recent,
        BLOCK_R=triton.next_power_of_2(max(1, recent)),
        DEPENDENT=True,
    )
    if not recent:
        constants["recent_ptr"] = None
    if not memory:
        constants["slot_values_ptr"] = None
    if not novelty:
        constants.update(dict.fromkeys(OF_NOVELTY))
    return build(combine_kernel, constants, config.choose_warps, 3, "bf16", "bf16")


def similarity(head_dim: int, cache: str):
    constants = dict(
        NUM_KV_HEADS=8,
        HEAD_DIM=head_dim,
        K_SLOT_STRIDE=8 * head_dim,
        BLOCK_C=max(16, head_dim // 4),
        BLOCK_N=64,
        BLOCK_R=128,
        RECENT=64,
        COMPARED=COMPARED_TOKENS,
        NARROW=cache != "bf16",
        DOT_PRECISION="ieee",
        DEPENDENT=True,
    )
    return build(similarity_kernel, constants, 4, 3, "bf16", cache)


def cut(function, head_dim: int):
    constants = dict(
        GROUP=4,
        ROWS=128,
        HEAD_DIM=head_dim,
        BLOCK_M=64,
        BLOCK_N=64 if head_dim <= 128 else 32,
        BLOCK_D=triton.next_power_of_2(head_dim),
        BLOCK_C=MAX_CHUNKS,
        BLOCK_R=COMBINE_ROWS,
        HAS_CAP=False,
        DOT_PRECISION="ieee",
    )
    constants = {name: constants[name] for name in constants if name in function.arg_names}
    return build(function, constants, 4, 3, "bf16", "bf16")


def main() -> None:
    def show(name: str, found: dict) -> None:
        print(json.dumps(dict(name=name, **found)), flush=True)

    for head_dim in (64, 96, 128, 256):
        show(f"attend {head_dim} bf16", attend(head_dim, 4, "bf16", "bf16"))
    for batch in (1, 8):
        show(f"attend 128 bf16, batch {batch}", attend(128, 4, "bf16", "bf16", batch))
    show("attend 128 bf16 beside similarity", attend(128, 4, "bf16", "bf16", beside=True))
    show("attend 128 fp16", attend(128, 7, "fp16", "fp16"))
    show("attend 128 fp8", attend(128, 4, "bf16", "fp8e4nv"))
    for batch in (1, 8, 32, 128):
        show(f"combine 32 heads, batch {batch}", combine(32, 1, 0, batch))
    show("combine 64 heads, 64 recent", combine(64, 1, 64))
    show("combine by KV head", combine(32, 8, 0))
    show("combine with memory", combine(32, 1, 0, memory=True))
    show("combine with novelty, 16 recent", combine(32, 1, 16, memory=True, novelty=True))
    for head_dim, cache in ((64, "bf16"), (128, "bf16"), (128, "fp8e4nv"), (256, "bf16")):
        show(f"similarity {head_dim} {cache}", similarity(head_dim, cache))
    show("gather", build(gather_indices_kernel, dict(BLOCK=512), 4, 3, "bf16", "bf16"))
    show("normaliser", cut(prompt.normaliser_kernel, 128))
    show("combine chunks", cut(prompt.combine_chunks_kernel, 128))
    show("mass", cut(prompt.mass_kernel, 128))


if __name__ == "__main__":
    sys.exit(main())
