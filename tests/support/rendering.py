# SPDX-License-Identifier: Apache-2.0
"""`longflow render` as the tests of what it writes and says call it."""

from __future__ import annotations

from pathlib import Path

import yaml

from sglang_longflow.cli.main import main
from sglang_longflow.deployment import sizing
from sglang_longflow.planner.geometry import load_geometry
from sglang_longflow.planner.gpus import GPUS
from sglang_longflow.planner.plan import make_plan

TINY = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128,
    "num_attention_heads": 4, "head_dim": 64, "num_key_value_heads": 2, "vocab_size": 100,
}  # fmt: skip
SIZE = ("--model", "qwen3-1.7b", "--gpu", "H100-80G", "--budget", "3200")


def plan_of(model="Qwen/Qwen3-1.7B", gpu="H100-80G", budget=3200, **more):
    return make_plan(load_geometry(model), gpu=GPUS[gpu], budget_tokens=budget, **more)


def sized(plan, least=1, most=4, **more):
    return sizing.make_sizing(plan, model_path="a/b", replicas_min=least, replicas_max=most, **more)


def render(out: Path, target: str, *flags: str, size: tuple[str, ...] = SIZE) -> int:
    return main(["render", "--target", target, "--out", str(out), *size, *map(str, flags)])


def refusal(capsys, out: Path, target: str, *flags: str, size: tuple[str, ...] = SIZE) -> str:
    assert render(out, target, *flags, size=size) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == "" and line.startswith("longflow render: error: ")
    assert not out.exists() or not list(out.glob("*.yaml"))
    return line


def read(path: Path):
    return yaml.safe_load(path.read_text())
