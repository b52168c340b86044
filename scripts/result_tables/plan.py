# SPDX-License-Identifier: Apache-2.0
"""What `longflow plan` of this checkout computes, beside what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from result_tables.data import PAPER, table, value, whole
from result_tables.speed import SETTLED
from sglang_longflow.planner.geometry import load_geometry
from sglang_longflow.planner.gpus import choose_gpu
from sglang_longflow.planner.plan import make_plan

#: What is read within each decode step: Hugging Face names of the geometries.
MODELS = {
    "qwen3-1.7b": "Qwen/Qwen3-1.7B",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "qwen2.5-math-7b": "Qwen/Qwen2.5-Math-7B",
}
#: Tokens in and out of each workload.
LENGTHS = {
    "16k answers": (512, 16384),
    "4k answers": (512, 4096),
    "1k answers": (700, 1024),
    "8 requests": (512, 3000),
    "22 requests": (512, 4096),
}
PLAN_LIMIT = 0.15


@dataclass(frozen=True)
class Planned:
    """A measured point beside what `longflow plan` computes for it; tokens/s."""

    name: str
    gpu: str
    commit: str
    planned: float
    measured: float

    @property
    def error(self) -> float:
        """Of the plan, as a share of the measured speed."""
        return self.planned / self.measured - 1


def planned() -> list[Planned]:
    """Points under the paper's rule and stock; the plan does not know policies."""
    points = []
    shown: tuple[tuple[str, str, str, int, str, dict[str, str]], ...] = (
        *(("16k answers", PAPER, "20adcea", b, "H200", {"card": "1"}) for b in (512, 800)),
        *(("16k answers", PAPER, "20adcea", b, "H200", {"card": "0"}) for b in (1600, 3200)),
        ("16k answers", PAPER, "20adcea", 6400, "H200", {}),
        ("16k answers", "stock", "20adcea", 0, "H200", {"part": SETTLED}),
        ("4k answers", PAPER, "20adcea", 1024, "H200", {}),
        ("4k answers", "stock", "20adcea", 0, "H200", {}),
        ("8 requests", PAPER, "20adcea", 1024, "H200", {}),
        ("8 requests", "stock", "20adcea", 0, "H200", {}),
        ("22 requests", "stock", "20adcea", 0, "H200", {}),
        ("1k answers", PAPER, "20adcea", 384, "H200", {"part": ""}),
        ("1k answers", PAPER, "20adcea", 384, "H200", {"part": "prefills in fours"}),
        ("1k answers", "stock", "20adcea", 0, "H200", {}),
        ("16k answers", PAPER, "2f669e9", 512, "H100", {}),
        ("16k answers", PAPER, "0602442", 800, "H100", {}),
        ("16k answers", PAPER, "0602442", 1600, "H100", {}),
        ("16k answers", PAPER, "0602442", 3200, "H100", {}),
        ("16k answers", PAPER, "57b8d4b", 6400, "H100", {}),
        ("16k answers", "stock", "0602442", 0, "H100", {}),
        ("4k answers", PAPER, "0602442", 1024, "H100", {}),
        ("4k answers", "stock", "0602442", 0, "H100", {}),
        ("8 requests", PAPER, "57b8d4b", 1024, "H100", {}),
        ("8 requests", "stock", "57b8d4b", 0, "H100", {}),
        ("16k answers", PAPER, "7c78fb3", 3200, "H100", {"geometry": "qwen3-8b"}),
        ("16k answers", "stock", "67d95d7", 0, "H100", {"geometry": "qwen3-8b"}),
        ("1k answers", PAPER, "52c00f0", 384, "H100", {"part": ""}),
        ("1k answers", PAPER, "52c00f0", 384, "H100", {"part": "prefills in fours"}),
        ("1k answers", "stock", "52c00f0", 0, "H100", {}),
    )
    for workload, system, commit, budget, gpu, more in shown:
        where = {"commit": commit, "gpu": gpu, "workload": workload, "system": system}
        where |= {"budget": str(budget), "part": "", **more}
        if "geometry" not in where:
            where["geometry"] = "qwen2.5-math-7b" if workload == "1k answers" else "qwen3-1.7b"
        measured = value("throughput", "output_tokens_per_s", **where)
        name = workload + (", Qwen3-8B" if where["geometry"] == "qwen3-8b" else "")
        name += ", stock" if system == "stock" else f", budget {budget:,}"
        if where["part"] == "prefills in fours":
            name += ", prefills in fours"
        point = plan_of(where["geometry"], gpu, workload, budget)
        points.append(Planned(name, gpu, commit, point, measured))
    return points


def plan_of(geometry: str, gpu: str, workload: str, budget: int) -> float:
    """Output tokens/s that `longflow plan` computes for a workload and the pool it was run with."""
    pools = {"qwen2.5-math-7b": 466_554, "qwen3-8b": 391_726}
    pool = pools.get(geometry, 110_000 if workload == "22 requests" else 290_000)
    prompt, output = LENGTHS[workload]
    users = int(workload.split()[0]) if workload.endswith("requests") else None
    plan = make_plan(
        load_geometry(MODELS[geometry], hub=False),
        gpu=choose_gpu(gpu).gpu,
        budget_tokens=budget or 64,  # any; full_tokens_per_s does not depend on it
        users=users,
        prompt_tokens=prompt,
        output_tokens=output,
        pool_tokens=pool,
    )
    found = plan.budget_tokens_per_s if budget else plan.full_tokens_per_s
    assert found is not None
    return found


def plan_table() -> str:
    rows = []
    for one in planned():
        off = f"{one.error * 100:+.1f} %"
        if abs(one.error) > PLAN_LIMIT:
            off = f"**{off}**"
        numbers = (whole(one.planned), whole(one.measured), off)
        rows.append((one.name, one.gpu, one.commit, *numbers))
    return table(("Workload", "GPU", "Commit", "Planned", "Measured", "Off by"), rows)
