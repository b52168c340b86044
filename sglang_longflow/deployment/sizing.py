# SPDX-License-Identifier: Apache-2.0
"""The numbers of a deployment, from a plan: rows, thresholds, memory, disk and times."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sglang_longflow.planner.geometry import PlanError
from sglang_longflow.planner.gpus import GIB
from sglang_longflow.planner.plan import Plan
from sglang_longflow.settings.flags import DEFAULT_POLICY

# Parts of a server's rows, in percent; the same as the chart's defaults, which a test compares.
TARGET_PERCENT = 80
QUEUE_PERCENT = 40
BALANCE_PERCENT = 10  # servers' loads may differ so much before the router leaves a prefix
GRACE_MARGIN_S = 30  # the chart adds it, and the preStop time, to the longest generation
# Host memory: the HTTP process, and each GPU's scheduler with its CUDA context and libraries.
HOST_GIB, GIB_PER_GPU = 8, 6
SHARED_MEMORY_GIB_PER_GPU = 8  # /dev/shm, which NCCL uses between the GPUs of a server
CPUS_PER_GPU = 4
# Disk beyond the weights that are loaded: other formats in the repository, a second revision.
DISK_FACTOR, DISK_EXTRA_GIB = 1.5, 5
DEFAULT_GENERATION_S = 1800  # if the plan has no speed: a card that is not in its table
LEAST_GENERATION_S = 300
SLOWER_THAN_PLANNED = 2  # a full server takes up to this many times the planned mean


@dataclass(frozen=True)
class Sizing:
    """Numbers to fill in; tokens, requests, GiB and seconds as the names say.

    ``rows`` is what one server holds at the default budget, and its ``max-running-requests``.
    """

    plan: Plan
    model_path: str
    budget_tokens: int
    rows: int
    load_threshold: int
    queue_threshold: int
    replicas_min: int
    replicas_max: int
    longest_generation_s: int
    memory_request_gib: int
    memory_limit_gib: int
    shared_memory_gib: int
    cpus: int
    cache_gib: int
    max_total_tokens: int | None = None
    reasoning_parser: str = ""
    revision: str | None = None

    @property
    def autoscaled(self) -> bool:
        return self.replicas_max > self.replicas_min

    @property
    def gpus(self) -> int:
        return self.plan.tp

    def server_config(self) -> dict[str, Any]:
        """The YAML file of `longflow serve`."""
        plan = self.plan
        config: dict[str, Any] = {
            "model-path": self.model_path,
            "dtype": plan.dtype,
            "kv-budget": self.budget_tokens,
            # What the thresholds count on: a row is never larger.
            "kv-budget-max": self.budget_tokens,
            "kv-policy": DEFAULT_POLICY,
            "mem-fraction-static": plan.mem_fraction_static,
            "max-running-requests": self.rows,
            "kv-planned-rows": self.rows,
            "page-size": 1,
            "enable-metrics": True,
        }
        if self.reasoning_parser:
            config["reasoning-parser"] = self.reasoning_parser
        if plan.kv_cache_dtype != "auto":
            config["kv-cache-dtype"] = plan.kv_cache_dtype
        if self.revision is not None:
            config["revision"] = self.revision
        if self.max_total_tokens is not None:
            config["max-total-tokens"] = self.max_total_tokens
        if self.plan.max_mamba_cache_size is not None:
            config["max-mamba-cache-size"] = self.plan.max_mamba_cache_size
        return config


def part_of(rows: int, percent: int) -> int:
    """A threshold in requests, as the chart computes it."""
    return max(1, rows * percent // 100)


def longest_generation_s(plan: Plan) -> int:
    """Seconds that a request of the planned output may take on a full server, in whole minutes."""
    if not plan.budget_tokens_per_s or not plan.rows_budget:
        return DEFAULT_GENERATION_S
    per_row = plan.budget_tokens_per_s / plan.rows_budget
    seconds = SLOWER_THAN_PLANNED * plan.output_tokens / per_row
    return max(LEAST_GENERATION_S, math.ceil(seconds / 60) * 60)


def make_sizing(
    plan: Plan,
    *,
    model_path: str,
    replicas_min: int,
    replicas_max: int,
    max_total_tokens: int | None = None,
    reasoning_parser: str = "",
    revision: str | None = None,
) -> Sizing:
    """Numbers of a deployment of the planned server.

    Parameters
    ----------
    plan : Plan
        With a budget.
    model_path : str
        What the server loads: a Hugging Face name, or a path in the container.
    replicas_min, replicas_max : int
        Servers; the same for a fixed number.
    max_total_tokens : int, optional
        The planned limit of the pool, which the server then gets too.
    reasoning_parser : str
        SGLang's parser for the model's thinking; empty for none.
    revision : str, optional
        Of the model: branch, tag or commit.

    Raises
    ------
    PlanError
        No row fits, or the replicas contradict each other.
    """
    if plan.budget_tokens is None:
        raise PlanError("no budget: full KV already runs all --users at once; give --budget")
    if plan.refused:
        raise PlanError(f"longflow serve refuses {plan.model}: {plan.refused}")
    rows = plan.pool_tokens // plan.budget_tokens
    if plan.state_rows is not None:
        rows = min(rows, plan.state_rows)
    if rows < 1:
        raise PlanError(
            f"--budget {plan.budget_tokens} exceeds the pool of {plan.pool_tokens} tokens: a "
            "server would hold no request at its budget"
        )
    if replicas_max < replicas_min:
        raise PlanError(
            f"--replicas-max {replicas_max} must be at least --replicas-min {replicas_min}"
        )
    weights_gib = plan.weights_bytes / GIB
    shared = SHARED_MEMORY_GIB_PER_GPU * plan.tp
    request = HOST_GIB + GIB_PER_GPU * plan.tp
    return Sizing(
        plan=plan,
        model_path=model_path,
        budget_tokens=plan.budget_tokens,
        rows=rows,
        load_threshold=part_of(rows, TARGET_PERCENT),
        queue_threshold=part_of(rows, QUEUE_PERCENT),
        replicas_min=replicas_min,
        replicas_max=replicas_max,
        longest_generation_s=longest_generation_s(plan),
        memory_request_gib=request,
        # While they load, the weights pass through the host's memory.
        memory_limit_gib=request + math.ceil(weights_gib) + shared,
        shared_memory_gib=shared,
        cpus=CPUS_PER_GPU * plan.tp,
        cache_gib=math.ceil(weights_gib * DISK_FACTOR) + DISK_EXTRA_GIB,
        max_total_tokens=max_total_tokens,
        reasoning_parser=reasoning_parser,
        revision=revision,
    )
