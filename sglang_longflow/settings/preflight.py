# SPDX-License-Identifier: Apache-2.0
"""The one preflight: what is wrong with a server's arguments, before anything heavy is imported.

`longflow serve`, `doctor`, `bench` and `eval` ask `judge`, and so does the server's own process
before SGLang resolves its settings. What only SGLang knows is judged there once more, afterwards.
No torch here: a mistake costs a second, not a start.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from sglang_longflow.errors import ConfigError
from sglang_longflow.settings import device
from sglang_longflow.settings.compatibility import flag_conflicts, kernel_conflict
from sglang_longflow.settings.config import LongFlowConfig, config_from
from sglang_longflow.settings.context import budget_problems, context_tokens
from sglang_longflow.settings.hybrid_models import hybrid_layers
from sglang_longflow.settings.numbers import READABLE, as_int
from sglang_longflow.settings.problem import Problem, refuse_first
from sglang_longflow.settings.refused_models import FIX, language_model, model_conflict
from sglang_longflow.settings.release import refusal


def judge(values: Mapping[str, Any], model: Mapping[str, Any] | None = None) -> list[Problem]:
    """Every mistake in a server's arguments, the cheapest to mend first; empty if there is none.

    Parameters
    ----------
    values : mapping
        Arguments by field of ServerArgs: those that were set, or all of them.
    model : mapping, optional
        The model's ``config.json``; without it the model is not judged.
    """
    try:
        config = config_from(SimpleNamespace(**values))
    except ConfigError as error:
        return [Problem.of(error)]
    found = [] if (problem := gpu_problem(values)) is None else [problem]
    for name in READABLE:
        if (value := values.get(name)) is not None and as_int(value) is None:
            what = f"{name}={value!r}: expected an integer, or one such as 32k or 32Ki"
            found.append(Problem(what, f"set --{name.replace('_', '-')} N"))
    found += _range_problems(values)
    if config is None:
        return found
    if message := refusal("--kv-budget"):
        return [Problem.of(ConfigError(message))]
    found = flag_conflicts(SimpleNamespace(**values)) + found + _pool_problems(values, config)
    if model is not None and not is_overridden(values):
        found += model_problems(values, config, model)
    return found


def refuse(values: Mapping[str, Any], model: Mapping[str, Any] | None = None) -> None:
    """Raise UnsupportedSetup for the first mistake that `judge` finds."""
    refuse_first(judge(values, model))


def _pool_problems(values: Mapping[str, Any], config: LongFlowConfig) -> list[Problem]:
    pool = as_int(values.get("max_total_tokens"))
    if pool is None or not 0 < pool < config.kv_budget:
        return []
    what = f"kv_budget={config.kv_budget}: larger than the whole KV pool of {pool} tokens"
    return [Problem(what, f"lower --kv-budget, or raise --max-total-tokens={pool}")]


def is_overridden(values: Mapping[str, Any]) -> bool:
    """Whether the model's config is changed on the command line, so that the file does not tell."""
    return values.get("json_model_override_args") not in (None, "{}")


def _range_problems(values: Mapping[str, Any]) -> list[Problem]:
    """Numbers with which no server can start, budget or not."""
    found = []
    share = values.get("mem_fraction_static")
    if isinstance(share, int | float) and not 0 < share < 1:
        what = f"mem_fraction_static={share}: expected a part of the memory, above 0 and below 1"
        found.append(Problem(what, "set --mem-fraction-static 0.85, or drop it"))
    for name in ("max_total_tokens", "max_running_requests", "context_length"):
        value = as_int(values.get(name))
        if value is not None and value < 1:
            what = f"{name}={value}: expected 1 or more"
            found.append(Problem(what, f"drop --{name.replace('_', '-')}, or give more"))
    return found


def gpu_problem(values: Mapping[str, Any]) -> Problem | None:
    """More GPUs asked for than CUDA sees here; on a CPU more than one rank; a count of none."""

    def count(name: str) -> int:
        value = values.get(name)
        return value if isinstance(value, int) and value > 0 else 1

    if values.get("device") not in (None, "cuda", "cpu") or values.get("use_ray"):
        return None
    sizes = {name: count(name) for name in ("tp_size", "pp_size", "dp_size")}
    what = ", ".join(f"{name}={n}" for name, n in sizes.items() if n > 1)
    for name in sizes:
        if isinstance(value := values.get(name), int) and value < 1:
            option = "--" + name.replace("_", "-")
            return Problem(f"{name}={value}: expected 1 or more", f"set {option} 1")
    seen = 0 if values.get("device") == "cpu" else device.gpu_count()
    if seen == 0 and values.get("device") == "cuda":
        return Problem("device='cuda': CUDA sees no GPU here", "drop --device, or set --device cpu")
    if seen == 0:
        if sizes["tp_size"] == 1:
            return None
        return Problem(f"{what}: on a CPU the model runs in one process", "set --tp-size 1")
    tp, pp, dp = sizes.values()
    # With data-parallel attention the replicas share the GPUs of the tensor-parallel group.
    here = tp * pp * (1 if values.get("enable_dp_attention") else dp)
    here = max(1, here // count("nnodes"))
    base = values.get("base_gpu_id")
    first = base if isinstance(base, int) else 0
    needed = first + (here - 1) * count("gpu_id_step") + 1
    if needed <= seen:
        return None
    if first:
        what = ", ".join(part for part in (what, f"base_gpu_id={first}") if part)
    fix = f"set --tp-size {seen} at most, or let CUDA_VISIBLE_DEVICES show more"
    if here <= seen:
        fix = "lower --base-gpu-id and --gpu-id-step, or let CUDA_VISIBLE_DEVICES show more"
    return Problem(f"{what}: needs {needed} GPUs on this machine, and CUDA sees {seen}", fix)


def model_problems(
    values: Mapping[str, Any], config: LongFlowConfig, model: Mapping[str, Any]
) -> list[Problem]:
    """What a model's ``config.json`` says against the budget.

    What cannot be read there, such as a number for ``layer_types``, is no problem here: SGLang,
    which reads it too, says what is wrong with it.
    """
    if values.get("enable_multimodal") is False:
        model = language_model(model)
    try:
        if conflict := model_conflict(model):
            return [Problem(conflict, FIX)]
    except TypeError:
        return []
    hybrid = hybrid_layers(language_model(model))
    found = [] if hybrid is None else _state_problems(values)
    if language_model(model).get("model_type") == "qwen3_next":
        found += _lora_problems(values)
    if (heads := _heads(model)) is not None:
        found += _split_problems(values.get("tp_size"), *heads[:2])
        if config.uses_fused_decode and (conflict := kernel_conflict(*heads)):
            found.append(Problem(conflict, "set --kv-decode-kernel reference"))
    return found + budget_problems(config, context_of(values, model))


def _lora_problems(values: Mapping[str, Any]) -> list[Problem]:
    """LoRA on Qwen3-Next, whose queries have a gate that SGLang 0.5.23 gives adapters no room for:
    its scheduler ends at the first request with one that changes them.
    """
    name = next((name for name in ("enable_lora", "lora_paths") if values.get(name)), None)
    if name is None:
        return []
    what = f"{name}={values[name]!r}: LoRA on Qwen3-Next ends SGLang 0.5.23 at the first request"
    return [Problem(what, "drop --enable-lora and --lora-paths")]


def _state_problems(values: Mapping[str, Any]) -> list[Problem]:
    """Numbers with which SGLang's server of recurrent states ends: at its start, after a minute
    of loading, or at its first token.
    """
    found = []
    tree = not values.get("disable_radix_cache")
    interval = as_int(values.get("mamba_track_interval"))
    if tree and interval is not None and interval < 1:
        what = f"mamba_track_interval={interval}: expected 1 or more"
        found.append(Problem(what, "drop --mamba-track-interval, or give more"))
    # Under overlap scheduling a request takes up to two more; SGLang says so itself.
    each = 3 if tree else 1
    slots = as_int(values.get("max_mamba_cache_size"))
    if slots is not None and slots < each:
        what = f"max_mamba_cache_size={slots}: one request takes {each} recurrent states or more"
        found.append(Problem(what, f"drop --max-mamba-cache-size, or give {each} or more"))
    return found


def context_of(values: Mapping[str, Any], model: Mapping[str, Any]) -> int | None:
    """The server's longest context in tokens: ``--context-length``, else the model's."""
    return as_int(values.get("context_length")) or context_tokens(model)


def _split_problems(ranks: object, query_heads: int, kv_heads: int) -> list[Problem]:
    """Heads that the ranks of tensor parallelism cannot share; KV heads may also be copied."""

    def divides(n: int) -> bool:
        return query_heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)

    if not isinstance(ranks, int) or ranks < 1 or divides(ranks):
        return []
    what = (
        f"tp_size={ranks}: does not divide the model's {query_heads} attention and {kv_heads} KV "
        f"heads"
    )
    able = ", ".join(str(n) for n in range(1, min(query_heads, 16) + 1) if divides(n))
    return [Problem(what, f"set --tp-size to one of {able}")]


def _heads(model: Mapping[str, Any]) -> tuple[int, int, int, int] | None:
    """Query heads, KV heads, and the sizes of K's and V's; None where the config does not say."""
    text = language_model(model)
    heads, hidden = text.get("num_attention_heads"), text.get("hidden_size")
    if not isinstance(heads, int) or heads < 1:
        return None
    size = text.get("head_dim") or (hidden // heads if isinstance(hidden, int) else None)
    kv_heads = text.get("num_key_value_heads") or heads
    v_size = text.get("v_head_dim") or size
    for number in (size, kv_heads, v_size):
        if not isinstance(number, int) or number < 1:
            return None
    return heads, int(kv_heads), int(size or 0), int(v_size or 0)
