# SPDX-License-Identifier: Apache-2.0
"""One small case of each kernel, for `compute-sanitizer python tools/sanitize.py`.

It needs kernels/ and tests/support on PYTHONPATH. Each tensor has its exact size and a separate
allocation, so that any access beyond one is seen.
"""

import os

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
os.environ["LONGFLOW_TEST_DEVICE"] = "cuda"

import torch

from decode_case import SMALL, DecodeCase, assert_step
from longflow_kernels.attend_score_evict.rows import StepRow
from longflow_kernels.compress_prompt.op import Prompt, pack_prompts, paged_prompt_mass

ROWS = [
    StepRow(kv_len=53, overwrites=True, scored=True, written=3),
    StepRow(kv_len=0),
    StepRow(kv_len=18, scored=True),
    StepRow(kv_len=1),
    StepRow(kv_len=20, overwrites=True, given_victim=17),
]

for victim_heads in (1, 2):
    case = DecodeCase(
        ROWS,
        victim_heads=victim_heads,
        protect_recent_tokens=5,
        dtype=torch.bfloat16,
        device="cuda",
        config=SMALL,
    )
    assert_step(case, tolerance=2e-2, score_rounding=2e-3)
for written in (1, 32):  # the first overwrite compares all keys, later ones those with the newest
    novel = StepRow(kv_len=90, overwrites=True, scored=True, uses_novelty=True, written=written)
    case = DecodeCase(
        [novel, StepRow(kv_len=0), StepRow(kv_len=18)],
        protect_sink_tokens=4,
        protect_recent_tokens=64,
        dtype=torch.bfloat16,
        device="cuda",
        config=SMALL,
    )
    assert_step(case, tolerance=2e-2, score_rounding=2e-3)
queries = torch.randn(32, 8, 64, dtype=torch.bfloat16, device="cuda")
keys = torch.randn(150, 2, 64, dtype=torch.bfloat16, device="cuda")
slots = torch.randperm(150, device="cuda")[:77].to(torch.int32)
prompts = pack_prompts([Prompt(0, 77, 0), Prompt(0, 5, 0)], "cuda")
assert paged_prompt_mass(queries, 32, keys, slots[None], prompts, 0.125).isfinite().all()
torch.cuda.synchronize()
print("sanitize: every kernel ran")
