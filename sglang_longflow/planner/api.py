# SPDX-License-Identifier: Apache-2.0
"""`plan`: what a budget buys, for Python and for the command line alike."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace

from sglang_longflow.planner.geometry import (
    DTYPE_BYTES,
    KV_DTYPES,
    ModelGeometry,
    PlanError,
    load_geometry,
)
from sglang_longflow.planner.gpus import GIB, choose_gpu
from sglang_longflow.planner.plan import (
    DEFAULT_MEM_FRACTION,
    DEFAULT_OUTPUT_TOKENS,
    DEFAULT_PROMPT_TOKENS,
    Plan,
    make_plan,
)
from sglang_longflow.planner.quality import known_quality, small_share_note
from sglang_longflow.settings.compatibility import kernel_conflict
from sglang_longflow.settings.flags import DEFAULT_POLICY, MIN_BUDGET_TOKENS
from sglang_longflow.settings.nearest import nearest

#: Of tokens, users and all else that is counted: beyond it arithmetic only overflows.
MOST_COUNT = 10**12


def integer(flag: str, value: object, minimum: int = 1) -> int:
    """`value` as a whole number, from a number or its text; else a `PlanError`."""
    try:
        number = int(str(value))
    except ValueError:
        number = minimum - 1
    if number > MOST_COUNT:
        raise PlanError(f"{flag} {value!s:.40} must be at most {MOST_COUNT:,}")
    if number < minimum:
        why = " (policy minimum)" if minimum == MIN_BUDGET_TOKENS else ""
        raise PlanError(f"{flag} {value!s:.40} must be an integer >= {minimum}{why}")
    return number


def number(flag: str, value: object, below: float = 1e9) -> float:
    """`value` between 0 and `below`, both excluded, from a number or its text."""
    try:
        found = float(str(value))
    except ValueError:
        found = 0.0
    if not 0 < found < below:
        raise PlanError(f"{flag} {value} must be a number above 0 and below {below:g}")
    return found


def one_of(flag: str, value: str, known: Iterable[str]) -> str:
    """The known name that equals `value` in any case; else a `PlanError`."""
    names = {name.lower(): name for name in known}
    if str(value).lower() not in names:
        meant = nearest(str(value), names.values())
        raise PlanError(f"{flag} {value} is not one of: {', '.join(names.values())}{meant}")
    return names[str(value).lower()]


def _refuse_heads(geometry: ModelGeometry) -> None:
    """A server on a GPU would not start with such a model, or decode at a speed unknown here."""
    heads = (geometry.heads, geometry.kv_heads, geometry.head_dim, geometry.head_dim)
    if conflict := kernel_conflict(*heads):
        raise PlanError(
            f"config.json: {conflict}; longflow serve needs --kv-decode-kernel reference for it, "
            f"whose speed is not known"
        )


def plan(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    gpu: str | None = None,
    memory_gb: float | None = None,
    budget: int | None = None,
    users: int | None = None,
    prompt_tokens: int = DEFAULT_PROMPT_TOKENS,
    output_tokens: int = DEFAULT_OUTPUT_TOKENS,
    tp: int = 1,
    dtype: str = "bfloat16",
    kv_cache_dtype: str = "auto",
    mem_fraction_static: float = DEFAULT_MEM_FRACTION,
    weights_gb: float | None = None,
    max_total_tokens: int | None = None,
    max_mamba_cache_size: int | None = None,
) -> Plan:
    """Work out what a KV budget buys: pool, requests at once, speed. Needs no GPU.

    Every argument is the flag of ``longflow plan`` with the same name.

    Parameters
    ----------
    model : str or path
        Model folder, ``config.json``, or a name such as ``"Qwen/Qwen3-1.7B"``, looked for in
        Hugging Face's cache, on its hub, and in a built-in table.
    revision : str, optional
        Branch, tag or commit of a model with a name, as SGLang's flag.
    gpu : str, optional
        A card of the table, such as ``"H100-80G"``, a nickname such as ``"h100"``, the name that
        ``nvidia-smi`` prints, or ``"auto"``: the cards of this machine.
    memory_gb : float, optional
        Memory of one GPU in GiB; overrides that of `gpu`. One of the two is needed.
    budget : int, optional
        KV budget of a request in tokens. Left out, the largest with which `users` run at once.
    users : int, optional
        Requests that should run at once. One of `budget` and `users` is needed.
    prompt_tokens, output_tokens : int
        Length of each request.
    tp, dtype, kv_cache_dtype, mem_fraction_static, max_total_tokens, max_mamba_cache_size
        As SGLang's flags; the last is of models with recurrent states.
    weights_gb : float, optional
        Weights on all GPUs together in GiB, instead of working them out.

    Returns
    -------
    Plan

    Raises
    ------
    PlanError
        One line that names the flag, its value and the limit.
    """

    def given_bytes(flag: str, value: float | None) -> int | None:
        return None if value is None else int(number(flag, value) * GIB)

    def given(flag: str, value: int | None, minimum: int = 1) -> int | None:
        return None if value is None else integer(flag, value, minimum)

    card = None if gpu is None else choose_gpu(gpu)
    memory_bytes = given_bytes("--memory-gb", memory_gb)
    if card is not None and card.gpu is None and memory_bytes is None:
        memory_bytes = card.memory_bytes
    geometry = load_geometry(os.fspath(model), revision)
    _refuse_heads(geometry)
    plan = make_plan(
        geometry,
        gpu=None if card is None else card.gpu,
        memory_bytes=memory_bytes,
        budget_tokens=given("--budget", budget, MIN_BUDGET_TOKENS),
        users=given("--users", users),
        prompt_tokens=integer("--prompt-tokens", prompt_tokens),
        output_tokens=integer("--output-tokens", output_tokens),
        tp=integer("--tp", tp),
        dtype=one_of("--dtype", dtype, DTYPE_BYTES),
        kv_cache_dtype=one_of("--kv-cache-dtype", kv_cache_dtype, KV_DTYPES),
        mem_fraction_static=number("--mem-fraction-static", mem_fraction_static, 1),
        model_bytes=given_bytes("--weights-gb", weights_gb),
        max_total_tokens=given("--max-total-tokens", max_total_tokens),
        max_mamba_cache_size=given("--max-mamba-cache-size", max_mamba_cache_size),
    )
    if plan.budget_tokens is not None:
        name = os.fspath(model) if geometry.source == "folder" else geometry.name
        line = known_quality(name, DEFAULT_POLICY, plan.budget_tokens, geometry.folder)
        note = small_share_note(plan.budget_tokens, plan.full_final_tokens, line)
        plan = replace(plan, quality=line, notes=(*plan.notes, *filter(None, [note])))
    if card is not None and card.note is not None:
        plan = replace(plan, gpu=card.name, notes=(*plan.notes, card.note))
    return plan
