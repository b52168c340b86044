# SPDX-License-Identifier: Apache-2.0
"""What a KV budget buys: pool, requests at once and speed, from arithmetic alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sglang_longflow.planner.geometry import (
    ModelGeometry,
    PlanError,
    kv_bytes_per_token,
    parameter_count,
    state_bytes_per_request,
)
from sglang_longflow.planner.gpus import GIB, Gpu
from sglang_longflow.planner.states import (
    FASTER,
    StatePool,
    check_users,
    refusal_notes,
    state_notes,
    states_of,
)
from sglang_longflow.planner.step_time import StepTime
from sglang_longflow.planner.weights import weights_of
from sglang_longflow.settings.flags import MIN_BUDGET_TOKENS

COMPUTE_BOUND_ROWS = 256  # about where matrix products stop being limited by reading weights
DEFAULT_MEM_FRACTION = 0.85
TP_SIZES = (2, 4, 8, 16)  # that are suggested where one GPU is too small
DEFAULT_PROMPT_TOKENS = 512
NO_HELP = "does NOT help: "
DEFAULT_OUTPUT_TOKENS = 16384


@dataclass(frozen=True)
class Plan:
    """Result of `make_plan`; ``None`` where a figure does not apply.

    Speeds are output tokens/s of the whole tensor-parallel group; ``memory_bytes`` (None if the
    pool was given) and ``kv_bytes_per_token`` are per GPU. A budget row reserves
    ``budget_row_tokens`` and holds ``budget_mean_tokens`` averaged over its life. ``rows_full`` is
    the full-KV figure that the gains compare with: ``rows_full_mean``, at most the users, 0 where
    no request can finish. ``model_source`` says where the model's shape is from, ``passed_over``
    why a built-in one had to do; ``quality`` is what is known of the answers at the budget.
    ``state_bytes_per_request`` are a request's recurrent states, per GPU, 0 where a model has none;
    ``state_slots`` of them are in SGLang's pool, with which ``state_rows`` requests run at once;
    ``max_mamba_cache_size`` is their number where it was given. ``refused`` is why a server does
    not take the model.
    """

    model: str
    gpu: str | None
    memory_bytes: int | None
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
    model_source: str = ""
    passed_over: str = ""
    quality: str = ""
    state_bytes_per_request: int = 0
    state_slots: int | None = None
    state_rows: int | None = None
    max_mamba_cache_size: int | None = None
    refused: str = ""


def _rows_full(pool_tokens: int, prompt_tokens: int, output_tokens: int) -> int:
    """Requests that run at once with full KV, by their mean live length; 0 if none can finish."""
    if prompt_tokens + output_tokens > pool_tokens:
        return 0
    return int(pool_tokens // (prompt_tokens + output_tokens / 2))


def _at_most(rows: int, most: int | None) -> int:
    return rows if most is None else min(rows, most)


def budget_for_users(
    pool_tokens: int, users: int, prompt_tokens: int, output_tokens: int
) -> int | None:
    """Largest budget with which `users` requests run at once.

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


def _check_budget(geom: ModelGeometry, budget_tokens: int | None) -> None:
    """Raise PlanError for a budget that `longflow serve` refuses."""
    if budget_tokens is not None and budget_tokens < MIN_BUDGET_TOKENS:
        raise PlanError(
            f"--budget {budget_tokens} must be an integer >= {MIN_BUDGET_TOKENS} (policy minimum)"
        )
    context = geom.context_tokens
    if budget_tokens is not None and context is not None and budget_tokens > context:
        raise PlanError(
            f"--budget {budget_tokens} is over the model's context of {context} tokens, so nothing "
            f"would ever be overwritten; give less"
        )


def _beyond_context(geom: ModelGeometry, prompt_tokens: int, output_tokens: int) -> list[str]:
    """A note on requests that are longer than the model's context."""
    context = geom.context_tokens
    if context is None or prompt_tokens + output_tokens <= context:
        return []
    return [
        f"prompt and output are {prompt_tokens + output_tokens:,} tokens, over the model's context "
        f"of {context:,}: --output-tokens {max(1, context - prompt_tokens)} is what it can do"
    ]


def _budget_mean_tokens(prompt_tokens: int, output_tokens: int, budget_tokens: int) -> float:
    """Mean of min(prompt + t, budget) over the output steps t."""
    ramp = min(output_tokens, max(0, budget_tokens - prompt_tokens))
    rising = ramp * (prompt_tokens + ramp / 2)
    return (rising + (output_tokens - ramp) * budget_tokens) / output_tokens


def _weights(geom: ModelGeometry, dtype: str, given: int | None) -> tuple[int, str]:
    """Bytes of the weights on all GPUs together, and where the number is from."""
    if given is not None:
        return given, "--weights-gb"
    return weights_of(geom, dtype, hub=True)


def _pool_tokens(
    memory: int, mem_fraction: float, gpu_weights: float, kv_bytes: float, most: int | None,
    fix: Callable[[], str], states: StatePool | None = None,
) -> int:  # fmt: skip
    """KV slots that one GPU's memory leaves beside weights and states, in bytes, `most` at most."""
    if most is not None and most < MIN_BUDGET_TOKENS:
        raise PlanError(f"--max-total-tokens {most} is below {MIN_BUDGET_TOKENS}, the least budget")
    beside = 0 if states is None else states.bytes
    pool = int((memory * mem_fraction - gpu_weights - beside) // kv_bytes)
    if pool < MIN_BUDGET_TOKENS or (states is not None and not states.requests):
        also = "" if states is None else f", {max(beside, 0) / GIB:.2f} GiB of recurrent states"
        raise PlanError(
            f"memory {memory / GIB:.2f} GiB x --mem-fraction-static {mem_fraction:g} = "
            f"{memory * mem_fraction / GIB:.2f} GiB is too small for {gpu_weights / GIB:.2f}"
            f" GiB of weights a GPU{also} and a KV pool of {MIN_BUDGET_TOKENS} tokens; fix: {fix()}"
        )
    return pool if most is None else min(pool, most)


def _what_fits(
    geom: ModelGeometry, share: float, weights: float, tp: int, kv: str, dtype: str, request: int
) -> str:
    """Flags with which weights and one request of `request` tokens fit; `share` in bytes a GPU."""

    def least_tp(kv_dtype: str) -> int | None:
        for more in (n for n in TP_SIZES if n > tp):
            try:
                token_bytes = kv_bytes_per_token(geom, more, kv_dtype, dtype)
                state_bytes_per_request(geom, more)
            except PlanError:
                continue
            free = share - weights / more
            states = states_of(geom, state_bytes_per_request(geom, more), free, None)
            if states is not None:
                free = free - states.bytes if states.requests else 0
            if free >= request * token_bytes:
                return more
        return None

    found = [(least_tp(kind), kind) for kind in dict.fromkeys((kv, "fp8_e4m3"))]
    fixes, best = [], None
    for more, kind in found:
        if more is not None and (best is None or more < best):
            fixes.append(f"--tp {more}" + ("" if kind == kv else f" --kv-cache-dtype {kind}"))
            best = more
    fixes.append("a quantized checkpoint" if not geom.opaque_field else "a smaller model")
    return ", ".join([*fixes, "or a GPU with more memory"])


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
    max_total_tokens: int | None = None,
    max_mamba_cache_size: int | None = None,
    pool_tokens: int | None = None,
) -> Plan:
    """Compute pool, concurrency and expected gains of a budget.

    Parameters
    ----------
    geom : ModelGeometry
    gpu : Gpu, optional
        Gives memory and speeds; without it no tokens/s are computed, and gains count bytes only.
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
    max_total_tokens : int, optional
        As SGLang's flag: the most tokens that the pool may hold.
    max_mamba_cache_size : int, optional
        As SGLang's flag: slots of recurrent states.
    pool_tokens : int, optional
        KV slots of a pool that is there already, instead of working it out from the memory.

    Returns
    -------
    Plan

    Raises
    ------
    PlanError
        The setup does not work; the message names field, value and limit.
    """
    memory = memory_bytes if memory_bytes is not None else gpu.memory_bytes if gpu else None
    missing = []
    if memory is None and pool_tokens is None:
        missing.append("--gpu NAME or --memory-gb N")
    if budget_tokens is None and users is None:
        missing.append("--budget TOKENS or --users N")
    if missing:
        raise PlanError(f"give {', and '.join(missing)}")
    _check_budget(geom, budget_tokens)
    final = prompt_tokens + output_tokens
    kv_bytes = kv_bytes_per_token(geom, tp, kv_cache_dtype, dtype)
    model_bytes, source = _weights(geom, dtype, model_bytes)
    gpu_weights = model_bytes / tp
    slot_bytes = state_bytes_per_request(geom, tp)
    known = pool_tokens is None and memory is not None
    free = (memory or 0) * mem_fraction_static - gpu_weights if known else None
    states = states_of(geom, slot_bytes, free, max_mamba_cache_size)
    state_rows = None if states is None else states.requests
    if pool_tokens is not None:
        pool, memory = pool_tokens, None
        if pool < MIN_BUDGET_TOKENS:
            raise PlanError(
                f"a pool of {pool} tokens is below {MIN_BUDGET_TOKENS}, the least budget"
            )
    else:
        assert memory is not None
        share = memory * mem_fraction_static
        pool = _pool_tokens(
            memory, mem_fraction_static, gpu_weights, kv_bytes, max_total_tokens,
            lambda: _what_fits(geom, share, model_bytes, tp, kv_cache_dtype, dtype, final), states,
        )  # fmt: skip
    if prompt_tokens > pool:
        raise PlanError(f"--prompt-tokens {prompt_tokens} exceeds the pool of {pool} tokens")
    given = budget_tokens
    if budget_tokens is None and users is not None:
        check_users(states, users)
        budget_tokens = budget_for_users(pool, users, prompt_tokens, output_tokens)

    operations = 0 if geom.experts else 2 * parameter_count(geom) / tp
    step = StepTime(gpu, gpu_weights, kv_bytes, operations, geom.layers, slot_bytes)

    def tokens_per_s(rows: int, mean_tokens: float) -> float:
        return step.tokens_per_s(rows, mean_tokens, prompt_tokens, output_tokens)

    full_mean = prompt_tokens + output_tokens / 2
    fits = _at_most(_rows_full(pool, prompt_tokens, output_tokens), state_rows)
    rows_full = fits if users is None else min(fits, users)
    full_speed = tokens_per_s(rows_full, full_mean)
    row_tokens = mean = rows = speed = gain = speed_gain = break_even = None
    if budget_tokens is not None:
        row_tokens = min(final, budget_tokens)
        mean = _budget_mean_tokens(prompt_tokens, output_tokens, budget_tokens)
        rows = _at_most(_at_most(pool // row_tokens, users), state_rows)
        same = final <= budget_tokens  # no row is ever full: the run is that of full KV
        speed = full_speed if same else tokens_per_s(rows, mean)
        if rows_full:
            gain = 1.0 if same else rows / rows_full
            speed_gain = speed / full_speed
        break_even = max(0, 2 * (budget_tokens - prompt_tokens))
    helps, verdict = _verdict(
        budget=budget_tokens, pool=pool, prompt=prompt_tokens, output=output_tokens, users=users,
        fits=fits, rows_full=rows_full, rows=rows or 0, state_rows=state_rows,
    )  # fmt: skip
    if not helps and speed_gain is not None and speed_gain >= FASTER:
        reason = verdict.removeprefix(NO_HELP)
        verdict = f"faster, not more: about {speed_gain:.2f}x the tokens/s, as steps read less KV; "
        verdict += f"but {reason}"
    notes = _beyond_context(geom, prompt_tokens, output_tokens)
    if slot_bytes:
        sizes = (slot_bytes, kv_bytes, full_mean, row_tokens, rows, users)
        notes += [*state_notes(states, free, *sizes), *refusal_notes(geom)]
    notes += [geom.untried] if geom.untried else []
    if budget_tokens is not None and prompt_tokens > budget_tokens - 1:
        notes.append(
            f"the prompt of {prompt_tokens:,} tokens is cut to {budget_tokens - 1:,} at the end of "
            f"prefill, which needs all {prompt_tokens:,} slots until then"
        )
    if gpu is None and helps and rows is not None and rows > COMPUTE_BOUND_ROWS:
        notes.append(
            f"beyond about {COMPUTE_BOUND_ROWS} rows a step is limited by compute, not memory: "
            "expect less than this throughput gain"
        )
    if geom.experts and gpu:
        notes.append("the products of a mixture of experts are not counted, only its bytes")
    if given is not None and users is not None and rows is not None and rows < users:
        notes.append(f"{rows:,} of the {users:,} users run at once, the others wait")
    return Plan(
        model=geom.name, gpu=gpu.name if gpu else None, memory_bytes=memory,
        mem_fraction_static=mem_fraction_static, tp=tp, dtype=dtype, kv_cache_dtype=kv_cache_dtype,
        weights_bytes=model_bytes, weights_source=source, kv_bytes_per_token=kv_bytes,
        pool_tokens=pool, prompt_tokens=prompt_tokens, output_tokens=output_tokens, users=users,
        full_mean_tokens=full_mean, full_final_tokens=final,
        rows_full_mean=_at_most(int(pool // full_mean), state_rows),
        rows_full_final=_at_most(pool // final, state_rows), rows_full=rows_full,
        full_tokens_per_s=full_speed if gpu else None, budget_tokens=budget_tokens,
        budget_row_tokens=row_tokens, budget_mean_tokens=mean, rows_budget=rows,
        budget_tokens_per_s=speed if gpu else None, concurrency_gain=gain,
        throughput_gain=speed_gain, break_even_output_tokens=break_even,
        max_running_requests=(
            _at_most(pool // budget_tokens, state_rows) if helps and budget_tokens else None
        ),
        helps=helps, verdict=verdict, notes=tuple(notes), model_source=geom.source,
        passed_over=geom.passed_over, state_bytes_per_request=slot_bytes,
        state_slots=None if states is None else states.slots, state_rows=state_rows,
        max_mamba_cache_size=max_mamba_cache_size, refused=geom.refused,
    )  # fmt: skip


def _verdict(
    *, budget: int | None, pool: int, prompt: int, output: int, users: int | None, fits: int,
    rows_full: int, rows: int, state_rows: int | None = None,
) -> tuple[bool, str]:  # fmt: skip
    """Whether the budget helps, and one sentence why; lengths and pool in tokens.

    ``fits`` requests have room with full KV, of which the users' ``rows_full`` run; ``rows`` run at
    the budget, and ``state_rows`` at most have room for their recurrent states.
    """
    if users is not None and users <= fits and (budget is None or budget <= pool):
        return False, (
            f"{NO_HELP}all {users:,} users run at once with full KV already, "
            f"{fits:,} fit by mean length"
        )
    assert budget is not None  # budget_for_users leaves it out only in the case above
    if budget > pool:
        return False, f"{NO_HELP}the budget of {budget:,} tokens exceeds the pool of {pool:,}"
    if prompt + output <= budget:
        return False, (
            f"{NO_HELP}prompt + output = {prompt + output:,} tokens never exceed the budget "
            f"of {budget:,}"
        )
    if rows_full == 0:
        return True, f"helps: full KV cannot finish one such request, the budget runs {rows:,}"
    if state_rows is not None and rows_full >= state_rows:
        return False, (
            f"{NO_HELP}recurrent states have room for {state_rows:,} requests at once, and full KV "
            f"runs them all"
        )
    if rows > rows_full:
        return True, f"helps: {rows:,} requests at once instead of {rows_full:,} with full KV"
    if output <= 2 * (budget - prompt):
        return False, (
            f"{NO_HELP}outputs of {output:,} tokens do not exceed the break-even of "
            f"{2 * (budget - prompt):,}; full KV runs {rows_full:,} at once by mean length"
        )
    return False, f"{NO_HELP}the pool does not hold one more request at this budget"
