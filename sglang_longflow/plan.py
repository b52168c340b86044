"""``longflow plan``: what a KV budget buys on a given GPU, from arithmetic alone."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from sglang_longflow.geometry import (
    DTYPE_BYTES,
    KV_DTYPES,
    ModelGeometry,
    PlanError,
    checkpoint_bytes,
    kv_bytes_per_token,
    load_geometry,
    weights_bytes,
)

GIB = 2**30
MIN_BUDGET_TOKENS = 34  # LongFlow's policy minimum: its 32-token window and two slots more
ACHIEVABLE_BANDWIDTH = 0.9  # part of the peak that decoding reaches
COMPUTE_BOUND_ROWS = 256  # about where matrix products stop being limited by reading weights
DEFAULT_MEM_FRACTION = 0.85
DEFAULT_PROMPT_TOKENS = 512
DEFAULT_OUTPUT_TOKENS = 16384


@dataclass(frozen=True)
class Gpu:
    """One card: memory that CUDA reports as usable, and peak memory bandwidth."""

    name: str
    memory_bytes: int
    bandwidth_bytes_per_s: float


GPUS = {
    name: Gpu(name, int(gib * GIB), bandwidth)
    for name, gib, bandwidth in (
        ("H100-80G", 79.1, 3.35e12),
        ("H200-141G", 139.8, 4.8e12),
        ("A100-40G", 39.4, 1.555e12),
        ("A100-80G", 79.1, 2.039e12),
        ("L4-24G", 22.0, 0.3e12),
        ("L40S-48G", 44.4, 0.864e12),
        ("RTX4090-24G", 23.5, 1.008e12),
        ("B200-192G", 178.4, 8.0e12),
    )
}


@dataclass(frozen=True)
class Plan:
    """Result of `make_plan`; ``None`` where a figure does not apply.

    Speeds are output tokens/s of the whole tensor-parallel group; ``memory_bytes`` and
    ``kv_bytes_per_token`` are per GPU. A budget row reserves ``budget_row_tokens`` and holds
    ``budget_mean_tokens`` averaged over its life. ``rows_full`` is the full-KV figure that the
    gains compare with: ``rows_full_mean``, at most the users, 0 where no request can finish.
    """

    model: str
    gpu: str | None
    memory_bytes: int
    mem_fraction_static: float
    tp: int
    dtype: str
    kv_cache_dtype: str
    weights_bytes: int
    weights_source: str
    kv_bytes_per_token: int
    pool_tokens: int
    prompt_tokens: int
    output_tokens: int
    users: int | None
    full_mean_tokens: float
    full_final_tokens: int
    rows_full_mean: int
    rows_full_final: int
    rows_full: int
    full_tokens_per_s: float | None
    budget_tokens: int | None
    budget_row_tokens: int | None
    budget_mean_tokens: float | None
    rows_budget: int | None
    budget_tokens_per_s: float | None
    concurrency_gain: float | None
    throughput_gain: float | None
    break_even_output_tokens: int | None
    max_running_requests: int | None
    helps: bool
    verdict: str
    notes: tuple[str, ...]


def _rows_full(pool_tokens: int, prompt_tokens: int, output_tokens: int) -> int:
    """Requests that run at once with full KV, by their mean live length; 0 if none can finish."""
    if prompt_tokens + output_tokens > pool_tokens:
        return 0
    return int(pool_tokens // (prompt_tokens + output_tokens / 2))


def budget_for_users(
    pool_tokens: int, users: int, prompt_tokens: int, output_tokens: int
) -> int | None:
    """Largest budget with which so many requests run at once.

    Parameters
    ----------
    pool_tokens : int
        KV slots of the pool.
    users : int
        Requests that should run at once.
    prompt_tokens, output_tokens : int
        Length of each request in tokens.

    Returns
    -------
    int or None
        Budget in tokens; None when full KV already lets them all run.

    Raises
    ------
    PlanError
        Not even the smallest budget is small enough.
    """
    if users <= _rows_full(pool_tokens, prompt_tokens, output_tokens):
        return None
    if pool_tokens // users < MIN_BUDGET_TOKENS:
        raise PlanError(
            f"--users {users} exceeds {pool_tokens // MIN_BUDGET_TOKENS}, all that a pool of "
            f"{pool_tokens} tokens holds at the minimum budget of {MIN_BUDGET_TOKENS}"
        )
    return pool_tokens // users


def _budget_mean_tokens(prompt_tokens: int, output_tokens: int, budget_tokens: int) -> float:
    """Mean of min(prompt + t, budget) over the output steps t."""
    ramp = min(output_tokens, max(0, budget_tokens - prompt_tokens))
    rising = ramp * (prompt_tokens + ramp / 2)
    return (rising + (output_tokens - ramp) * budget_tokens) / output_tokens


def make_plan(
    geom: ModelGeometry,
    *,
    gpu: Gpu | None = None,
    memory_bytes: int | None = None,
    budget_tokens: int | None = None,
    users: int | None = None,
    prompt_tokens: int = DEFAULT_PROMPT_TOKENS,
    output_tokens: int = DEFAULT_OUTPUT_TOKENS,
    tp: int = 1,
    dtype: str = "bfloat16",
    kv_cache_dtype: str = "auto",
    mem_fraction_static: float = DEFAULT_MEM_FRACTION,
    model_bytes: int | None = None,
) -> Plan:
    """Compute pool, concurrency and expected gains of a budget.

    Parameters
    ----------
    geom : ModelGeometry
    gpu : Gpu, optional
        Gives memory and bandwidth; without it no tokens/s are computed (gains still are).
    memory_bytes : int, optional
        Memory of one GPU in bytes; overrides the memory of ``gpu``.
    budget_tokens : int, optional
        Budget of a request; left out, the largest that lets ``users`` run at once.
    users : int, optional
        Requests that want to run at once; left out, as many as fit.
    prompt_tokens, output_tokens : int
        Length of each request in tokens.
    tp, dtype, kv_cache_dtype, mem_fraction_static
        As SGLang's flags: GPUs, data types, part of the memory for weights and KV together.
    model_bytes : int, optional
        Weights on all GPUs together in bytes, if not to be worked out from the model.

    Returns
    -------
    Plan

    Raises
    ------
    PlanError
        The setup does not work; the message names field, value and limit.
    """
    memory = memory_bytes if memory_bytes is not None else gpu.memory_bytes if gpu else None
    if memory is None or (budget_tokens is None and users is None):
        raise PlanError("give --gpu or --memory-gb, and --budget or --users")
    if budget_tokens is not None and budget_tokens < MIN_BUDGET_TOKENS:
        raise PlanError(
            f"--budget {budget_tokens} must be an integer >= {MIN_BUDGET_TOKENS} (policy minimum)"
        )
    kv_bytes = kv_bytes_per_token(geom, tp, kv_cache_dtype, dtype)
    source = "--weights-gb"
    if model_bytes is None:
        stored = checkpoint_bytes(geom, dtype)
        source = "config.json geometry" if stored is None else "safetensors files"
        model_bytes = weights_bytes(geom, dtype) if stored is None else stored
    gpu_weights = model_bytes / tp
    pool = int((memory * mem_fraction_static - gpu_weights) // kv_bytes)
    final = prompt_tokens + output_tokens
    if pool < MIN_BUDGET_TOKENS:
        raise PlanError(
            f"memory {memory / GIB:.2f} GiB x --mem-fraction-static {mem_fraction_static:g} = "
            f"{memory * mem_fraction_static / GIB:.2f} GiB is too small for {gpu_weights / GIB:.2f}"
            f" GiB of weights a GPU and a KV pool of {MIN_BUDGET_TOKENS} tokens"
        )
    if prompt_tokens > pool:
        raise PlanError(f"--prompt-tokens {prompt_tokens} exceeds the pool of {pool} tokens")
    given = budget_tokens
    if budget_tokens is None and users is not None:
        budget_tokens = budget_for_users(pool, users, prompt_tokens, output_tokens)

    bandwidth = gpu.bandwidth_bytes_per_s * ACHIEVABLE_BANDWIDTH if gpu else None

    def tokens_per_s(rows: int, mean_tokens: float) -> float:
        return rows * (bandwidth or 1.0) / (gpu_weights + rows * mean_tokens * kv_bytes)

    full_mean = prompt_tokens + output_tokens / 2
    fits = _rows_full(pool, prompt_tokens, output_tokens)
    rows_full = fits if users is None else min(fits, users)
    full_speed = tokens_per_s(rows_full, full_mean)
    row_tokens = mean = rows = speed = gain = speed_gain = break_even = None
    if budget_tokens is not None:
        row_tokens = min(final, budget_tokens)
        mean = _budget_mean_tokens(prompt_tokens, output_tokens, budget_tokens)
        rows = pool // row_tokens if users is None else min(pool // row_tokens, users)
        same = final <= budget_tokens  # no row is ever full: the run is that of full KV
        speed = full_speed if same else tokens_per_s(rows, mean)
        if rows_full:
            gain = 1.0 if same else rows / rows_full
            speed_gain = speed / full_speed
        break_even = max(0, 2 * (budget_tokens - prompt_tokens))
    helps, verdict = _verdict(
        budget_tokens, pool, prompt_tokens, output_tokens, users, fits, rows_full, rows or 0
    )
    notes = []
    if budget_tokens is not None and prompt_tokens > budget_tokens - 1:
        notes.append(
            f"the prompt of {prompt_tokens:,} tokens is cut to {budget_tokens - 1:,} at the end of "
            f"prefill, which needs all {prompt_tokens:,} slots until then"
        )
    if helps and rows is not None and rows > COMPUTE_BOUND_ROWS:
        notes.append(
            f"beyond about {COMPUTE_BOUND_ROWS} rows a step is limited by compute, not memory: "
            "expect less than this throughput gain"
        )
    if not helps and speed_gain is not None and speed_gain > 1:
        notes.append(f"steps would still read less KV: about {speed_gain:.2f}x the tokens/s")
    if given is not None and users is not None and rows is not None and rows < users:
        notes.append(f"{rows:,} of the {users:,} users run at once, the others wait")
    return Plan(
        model=geom.name, gpu=gpu.name if gpu else None, memory_bytes=memory,
        mem_fraction_static=mem_fraction_static, tp=tp, dtype=dtype, kv_cache_dtype=kv_cache_dtype,
        weights_bytes=model_bytes, weights_source=source, kv_bytes_per_token=kv_bytes,
        pool_tokens=pool, prompt_tokens=prompt_tokens, output_tokens=output_tokens, users=users,
        full_mean_tokens=full_mean, full_final_tokens=final, rows_full_mean=int(pool // full_mean),
        rows_full_final=pool // final, rows_full=rows_full,
        full_tokens_per_s=full_speed if bandwidth else None, budget_tokens=budget_tokens,
        budget_row_tokens=row_tokens, budget_mean_tokens=mean, rows_budget=rows,
        budget_tokens_per_s=speed if bandwidth else None, concurrency_gain=gain,
        throughput_gain=speed_gain, break_even_output_tokens=break_even,
        max_running_requests=pool // budget_tokens if helps and budget_tokens else None,
        helps=helps, verdict=verdict, notes=tuple(notes),
    )  # fmt: skip


def _verdict(
    budget: int | None, pool: int, prompt: int, output: int, users: int | None, fits: int,
    rows_full: int, rows: int,
) -> tuple[bool, str]:  # fmt: skip
    """Whether the budget helps, and one sentence why."""
    if users is not None and users <= fits and (budget is None or budget <= pool):
        return False, (
            f"does NOT help: all {users:,} users run at once with full KV already, "
            f"{fits:,} fit by mean length"
        )
    assert budget is not None  # budget_for_users leaves it out only in the case above
    if budget > pool:
        return False, f"does NOT help: the budget of {budget:,} tokens exceeds the pool of {pool:,}"
    if prompt + output <= budget:
        return False, (
            f"does NOT help: prompt + output = {prompt + output:,} tokens never exceed the budget "
            f"of {budget:,}"
        )
    if rows_full == 0:
        return True, f"helps: full KV cannot finish one such request, the budget runs {rows:,}"
    if rows > rows_full:
        return True, f"helps: {rows:,} requests at once instead of {rows_full:,} with full KV"
    if output <= 2 * (budget - prompt):
        return False, (
            f"does NOT help: outputs of {output:,} tokens do not exceed the break-even of "
            f"{2 * (budget - prompt):,}; full KV runs {rows_full:,} at once by mean length"
        )
    return False, "does NOT help: the pool does not hold one more request at this budget"


def render(plan: Plan) -> str:
    """Plain-text table of a plan for a terminal; bytes in GiB, lengths in tokens."""

    def speed(value: float | None) -> str:
        return "" if value is None else f", about {value:,.0f} tokens/s"

    def times(value: float | None) -> str:
        return "no full-KV figure to compare with" if value is None else f"{value:.2f}x"

    users = "" if plan.users is None else f", {plan.users:,} users"
    memory = f"{plan.memory_bytes / GIB:.2f} GiB x {plan.mem_fraction_static:g}"
    lines = {
        "model": f"{plan.model}, {plan.dtype}, KV {plan.kv_cache_dtype}, TP {plan.tp}",
        "GPU": f"{plan.gpu or 'unnamed'}, {memory}",
        "weights": f"{plan.weights_bytes / GIB:.2f} GiB ({plan.weights_source})",
        "KV a token": f"{plan.kv_bytes_per_token:,} bytes a GPU",
        "KV pool": f"{plan.pool_tokens:,} tokens",
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
            "throughput gain": f"{times(plan.throughput_gain)} (memory-bound estimate)",
            "break-even": f"{plan.break_even_output_tokens:,} output tokens: up to there no more"
            " requests run at once",
        }
    if plan.max_running_requests is not None:
        lines["recommended"] = f"--max-running-requests {plan.max_running_requests}"
    rows = [*lines.items(), ("verdict", plan.verdict), *(("note", note) for note in plan.notes)]
    return "\n".join(f"{label:<18}{text}" for label, text in rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``longflow plan``; `run` checks the numbers and names."""
    add = parser.add_argument
    add("--model", required=True, help="model folder, config.json, or a built-in name")
    add("--gpu", help=f"one of {', '.join(GPUS)}")
    add("--memory-gb", help="memory of one GPU in GiB, as SGLang reports it; overrides --gpu's")
    add("--budget", help=f"KV budget of a request in tokens, at least {MIN_BUDGET_TOKENS}")
    add("--users", help="requests that should run at once; without --budget, finds the budget")
    add("--output-tokens", default=DEFAULT_OUTPUT_TOKENS, help="default %(default)s")
    add("--prompt-tokens", default=DEFAULT_PROMPT_TOKENS, help="default %(default)s")
    add("--tp", default=1, help="tensor-parallel GPUs, default %(default)s")
    add("--dtype", default="bfloat16", help=f"{', '.join(DTYPE_BYTES)}; default %(default)s")
    add("--kv-cache-dtype", default="auto", help=f"{', '.join(KV_DTYPES)}; default %(default)s")
    add("--mem-fraction-static", default=DEFAULT_MEM_FRACTION, help="default %(default)s")
    add("--weights-gb", help="weights on all GPUs together in GiB, instead of working them out")
    add("--json", action="store_true", help="print the plan as JSON")


def _integer(flag: str, value: object, minimum: int = 1) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = minimum - 1
    if number < minimum:
        why = " (policy minimum)" if minimum == MIN_BUDGET_TOKENS else ""
        raise PlanError(f"{flag} {value} must be an integer >= {minimum}{why}")
    return number


def _number(flag: str, value: object, below: float = 1e9) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = 0.0
    if not 0 < number < below:
        raise PlanError(f"{flag} {value} must be a number above 0 and below {below:g}")
    return number


def _one_of(flag: str, value: str, known: Iterable[str]) -> str:
    names = {name.lower(): name for name in known}
    if value.lower() not in names:
        raise PlanError(f"{flag} {value} is not one of: {', '.join(names.values())}")
    return names[value.lower()]


def _plan(args: argparse.Namespace) -> Plan:
    def given(flag: str, value: object) -> int | None:
        return None if value is None else int(_number(flag, value) * GIB)

    budget, users = args.budget, args.users
    return make_plan(
        load_geometry(args.model),
        gpu=None if args.gpu is None else GPUS[_one_of("--gpu", args.gpu, GPUS)],
        memory_bytes=given("--memory-gb", args.memory_gb),
        budget_tokens=None if budget is None else _integer("--budget", budget, MIN_BUDGET_TOKENS),
        users=None if users is None else _integer("--users", users),
        prompt_tokens=_integer("--prompt-tokens", args.prompt_tokens),
        output_tokens=_integer("--output-tokens", args.output_tokens),
        tp=_integer("--tp", args.tp),
        dtype=_one_of("--dtype", args.dtype, DTYPE_BYTES),
        kv_cache_dtype=_one_of("--kv-cache-dtype", args.kv_cache_dtype, KV_DTYPES),
        mem_fraction_static=_number("--mem-fraction-static", args.mem_fraction_static, 1),
        model_bytes=given("--weights-gb", args.weights_gb),
    )


def run(args: argparse.Namespace) -> int:
    """Print the plan that ``args`` asks for; 0, or 2 with a one-line error on stderr."""
    try:
        plan = _plan(args)
    except PlanError as err:
        print(f"longflow plan: error: {' '.join(str(err).split())}", file=sys.stderr)
        return 2
    print(json.dumps(asdict(plan), indent=2) if args.json else render(plan))
    return 0
