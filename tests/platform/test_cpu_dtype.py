# SPDX-License-Identifier: Apache-2.0
"""Which dtype a CPU computes fast, from what /proc/cpuinfo says of its cores."""

import subprocess
import sys

import pytest

from sglang_longflow.platform.cpu_dtype import fast_dtype, reason_for

AVX2 = "fpu sse4_2 fma f16c avx2"


def cpuinfo(*cores: str) -> str:
    return "\n\n".join(
        f"processor\t: {n}\nmodel name\t: x amx_bf16\nflags\t\t: {flags}\nbugs\t\t: none"
        for n, flags in enumerate(cores)
    )


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        (cpuinfo(AVX2, AVX2), "float32"),
        (cpuinfo(f"{AVX2} avx512f avx512_fp16"), "float32"),
        (cpuinfo(f"{AVX2} avx512_bf16", f"{AVX2} avx512_bf16"), "bfloat16"),
        (cpuinfo(f"{AVX2} amx_tile amx_bf16"), "bfloat16"),
        (cpuinfo(f"{AVX2} avx512_bf16", AVX2), "float32"),  # a thread may run on either core
        (cpuinfo(f"{AVX2} not_avx512_bf16"), "float32"),
        ("Features\t: fp asimd bf16\n", "float32"),  # no x86: nobody measured there
        ("", "float32"),
    ],
)
def test_flags_decide(tmp_path, text, dtype):
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    assert fast_dtype(file) == dtype


def test_without_cpuinfo(tmp_path):
    assert fast_dtype(tmp_path / "none") == "float32"


def test_the_reason_is_told():
    assert "no bfloat16 instructions" in reason_for("float32")
    assert "bfloat16 fastest" in reason_for("bfloat16")


def test_nothing_heavy_is_imported():
    code = (
        "import sys\nfrom sglang_longflow.platform.cpu_dtype import fast_dtype\nfast_dtype()\n"
        "assert not {'torch', 'sglang'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_here_it_is_the_one_that_multiplies_faster():
    """On the machine that runs the tests; the choice must not cost a factor of two.

    The time is this thread's on a core, in turns: other work may run beside.
    """
    import time

    import torch

    names = ("bfloat16", "float32")
    pairs = {n: [torch.randn(m, 512).to(getattr(torch, n)) for m in (512, 1024)] for n in names}
    seconds = dict.fromkeys(names, float("inf"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(24):
            for name, (a, b) in pairs.items():
                begin = time.thread_time()
                torch.nn.functional.linear(a, b)
                seconds[name] = min(seconds[name], time.thread_time() - begin)
    finally:
        torch.set_num_threads(threads)
    assert seconds[fast_dtype()] < 2 * min(seconds.values())
