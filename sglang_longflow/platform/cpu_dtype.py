# SPDX-License-Identifier: Apache-2.0
"""The dtype that this machine's CPU computes fast. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

#: Instructions for products of bfloat16, as /proc/cpuinfo names them. Without them such a product
#: is five times slower than one of float32, and one of float16 is no faster.
BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})
CPUINFO = Path("/proc/cpuinfo")


def fast_dtype(cpuinfo: Path = CPUINFO) -> str:
    """ "bfloat16" where the CPU multiplies it by itself, else "float32"."""
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        return "float32"
    flags = [
        set(value.split())
        for name, _, value in (line.partition(":") for line in text.splitlines())
        if name.strip() == "flags"
    ]
    # Every core must have them: a thread may run on any.
    return "bfloat16" if flags and all(BF16_FLAGS & each for each in flags) else "float32"


def reason_for(dtype: str) -> str:
    """Why `fast_dtype` answered so, for people."""
    return (
        f"this CPU multiplies {dtype} fastest"
        if dtype != "float32"
        else ("this CPU has no bfloat16 instructions")
    )
