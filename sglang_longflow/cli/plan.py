# SPDX-License-Identifier: Apache-2.0
"""``longflow plan``: the command line of `planner`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from inspect import signature

from sglang_longflow.planner.api import plan
from sglang_longflow.planner.geometry import DTYPE_BYTES, KV_DTYPES, PlanError
from sglang_longflow.planner.gpus import AUTO, GIB, GPUS
from sglang_longflow.planner.plan import (
    DEFAULT_MEM_FRACTION,
    DEFAULT_OUTPUT_TOKENS,
    DEFAULT_PROMPT_TOKENS,
    Plan,
)
from sglang_longflow.settings.flags import MIN_BUDGET_TOKENS

#: Where the shape of a model was found, in words.
SOURCES = {
    "folder": "its folder",
    "cache": "Hugging Face's cache",
    "hub": "Hugging Face's hub",
    "built-in": "built in",
}


def _shape(plan: Plan) -> str:
    why = f" ({plan.passed_over})" if plan.passed_over else ""
    return SOURCES.get(plan.model_source, "given") + why


def _states(plan: Plan) -> dict[str, str]:
    """The lines on recurrent states, of a model that has any."""
    if not plan.state_bytes_per_request:
        return {}
    lines = {"state per slot": f"{plan.state_bytes_per_request:,} bytes per GPU"}
    if plan.state_slots is not None:
        lines["state pool"] = f"{plan.state_slots:,} slots, for {plan.state_rows:,} requests"
    return lines


def render(plan: Plan) -> str:
    """Plain-text table of a plan for a terminal; bytes in GiB, lengths in tokens."""

    def speed(value: float | None) -> str:
        return "" if value is None else f", about {value:,.0f} tokens/s"

    def times(value: float | None) -> str:
        return "no full-KV figure to compare with" if value is None else f"{value:.2f}x"

    users = "" if plan.users is None else f", {plan.users:,} users"
    memory = "the pool was given"
    if plan.memory_bytes is not None:
        memory = f"{plan.memory_bytes / GIB:.2f} GiB x {plan.mem_fraction_static:g}"
    lines = {
        "model": f"{plan.model}, {plan.dtype}, KV {plan.kv_cache_dtype}, TP {plan.tp}",
        "shape": _shape(plan),
        "GPU": f"{plan.gpu or 'unnamed'}, {memory}",
        "weights": f"{plan.weights_bytes / GIB:.2f} GiB ({plan.weights_source})",
        "KV per token": f"{plan.kv_bytes_per_token:,} bytes per GPU",
        "KV pool": f"{plan.pool_tokens:,} tokens",
        **_states(plan),
        "requests": f"{plan.prompt_tokens:,} prompt + {plan.output_tokens:,} output tokens{users}",
        "full KV, mean": f"{plan.rows_full_mean:,} fit at {plan.full_mean_tokens:,.0f} tokens"
        " (prompt + output/2)",
        "full KV, final": f"{plan.rows_full_final:,} fit at {plan.full_final_tokens:,} tokens"
        " (prompt + output)",
        "full KV, used": f"{plan.rows_full:,} at once{speed(plan.full_tokens_per_s)}"
        + (" (by mean: starts are spread)" if plan.rows_full else " (none can finish)"),
    }
    if plan.budget_tokens is not None:
        lines |= {
            "budget": f"{plan.budget_tokens:,} tokens",
            "at the budget": f"{plan.rows_budget:,} at once at {plan.budget_row_tokens:,} tokens"
            f" each{speed(plan.budget_tokens_per_s)}",
            "concurrency gain": times(plan.concurrency_gain),
            "throughput gain": f"{times(plan.throughput_gain)} (estimate)",
            "break-even": f"{plan.break_even_output_tokens:,} output tokens: up to there no more"
            " requests run at once",
        }
    if plan.max_running_requests is not None:
        lines["recommended"] = f"--max-running-requests {plan.max_running_requests}"
    lines["verdict"] = plan.verdict
    if plan.quality:
        lines["quality"] = plan.quality
    rows = [*lines.items(), *(("note", note) for note in plan.notes)]
    return "\n".join(f"{label:<18}{text}" for label, text in rows)


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `plan_from` reads, which checks the numbers and names."""
    add = parser.add_argument
    add("--model", required=True, help="model folder, config.json, or a name of the hub")
    add("--revision", help="branch, tag or commit of a model with a name, as SGLang's flag")
    add("--gpu", help=f"{', '.join(GPUS)}, what nvidia-smi prints, or {AUTO}: this machine's")
    add("--memory-gb", help="memory of one GPU in GiB, as SGLang reports it; overrides --gpu's")
    add("--budget", help=f"KV budget of a request in tokens, at least {MIN_BUDGET_TOKENS}")
    add("--users", help="requests that should run at once; without --budget, finds the budget")
    add("--output-tokens", default=DEFAULT_OUTPUT_TOKENS, help="default %(default)s")
    add("--prompt-tokens", default=DEFAULT_PROMPT_TOKENS, help="default %(default)s")
    add("--tp", default=1, help="tensor-parallel GPUs, default %(default)s")
    add("--dtype", default="bfloat16", help=f"{', '.join(DTYPE_BYTES)}; default %(default)s")
    add("--kv-cache-dtype", default="auto", help=f"{', '.join(KV_DTYPES)}; default %(default)s")
    add("--mem-fraction-static", default=DEFAULT_MEM_FRACTION, help="default %(default)s")
    add("--max-total-tokens", help="the most tokens that the KV pool may hold, as SGLang's flag")
    add("--max-mamba-cache-size", help="slots of recurrent states, as SGLang's flag")
    add("--weights-gb", help="weights on all GPUs together in GiB, instead of working them out")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``longflow plan``."""
    add_plan_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def plan_from(args: argparse.Namespace) -> Plan:
    """The plan that the flags of `add_plan_arguments` ask for."""
    return plan(**{name: getattr(args, name) for name in signature(plan).parameters})


def run(args: argparse.Namespace) -> int:
    """Print the plan that ``args`` asks for; 0, or 2 with a one-line error on stderr."""
    try:
        found = plan_from(args)
    except PlanError as err:
        print(f"longflow plan: error: {' '.join(str(err).split())}", file=sys.stderr)
        return 2
    print(json.dumps(asdict(found), indent=2) if args.json else render(found))
    return 0
