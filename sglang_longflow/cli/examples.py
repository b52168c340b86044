# SPDX-License-Identifier: Apache-2.0
"""What each ``--help`` ends with: command lines to copy. tests/cli/test_examples.py parses them."""

from __future__ import annotations

from sglang_longflow import __version__

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("longflow demo",),
    "doctor": ("longflow doctor", "longflow doctor -- --model-path Qwen/Qwen3-8B --kv-budget 3200"),
    "eval": (
        "longflow eval --model Qwen/Qwen3-8B --task math500 --budgets 800,1600,full --out math500",
        "longflow eval --model Qwen/Qwen3-8B --task questions.jsonl --budgets 1600,full --out mine",
    ),
    "bench": (
        "longflow bench --model Qwen/Qwen3-8B --budgets 800,1600,full --out bench",
        "longflow bench --url http://127.0.0.1:30000 --budgets 800,1600 --out bench",
    ),
    "plan": (
        "longflow plan --model Qwen/Qwen3-8B --gpu H100-80G --budget 3200",
        "longflow plan --model Qwen/Qwen3-8B --gpu H100-80G --users 100",
    ),
    "top": ("longflow top --url http://127.0.0.1:30000 --sort saved", "longflow top --once --json"),
    "console": ("longflow console --url http://server:30000",),
    "render": (
        "longflow render --target kustomize --model Qwen/Qwen3-8B --gpu H100-80G --budget 3200 "
        f"--image registry.example.com/sglang-longflow:{__version__} --out mine",
    ),
}


def epilog(name: str) -> str:
    """The examples of a command, a line each."""
    return "\n".join(("examples:", *(f"  {line}" for line in EXAMPLES[name])))
