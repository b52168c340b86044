# SPDX-License-Identifier: Apache-2.0
"""What a budget server supports: the refusals, each with the flag to change, and its defaults."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from longflow_kernels.limits import HEAD_DIMS, MAX_GROUP
from sglang_longflow.errors import UnsupportedSetup
from sglang_longflow.settings import device
from sglang_longflow.settings.config import LongFlowConfig, runs_on_gpu
from sglang_longflow.settings.context import budget_problems
from sglang_longflow.settings.problem import Problem, refuse_first
from sglang_longflow.settings.refused_models import (
    FIX,
    IMAGES,
    language_model,
    media_conflict,
    model_conflict,
)
from sglang_longflow.settings.release import refusal

#: Smallest prefill chunk: twice the window of queries that scores an over-long prompt.
MIN_CHUNKED_PREFILL_SIZE = 64
#: Largest batch of a decode CUDA graph on a large GPU: a budget lets twice SGLang's 256 run.
CUDA_GRAPH_MAX_BS = 512
LARGE_GPU_BYTES = 60 << 30


@dataclass(frozen=True)
class FlagRule:
    """A server argument that must not be set together with a KV budget."""

    field: str
    is_fine: Any  # value -> bool
    feature: str
    fix: str


@dataclass(frozen=True)
class VariableRule:
    """A variable of SGLang that must not be on together with a KV budget."""

    name: str
    feature: str

    @property
    def fix(self) -> str:
        return f"unset {self.name}"


def _unset(value: Any) -> bool:
    return not value


_NOT_SET = (
    # field, feature, fix
    ("speculative_algorithm", "speculative decoding", "drop --speculative-algorithm"),
    ("enable_hierarchical_cache", "HiCache", "drop --enable-hierarchical-cache"),
    ("enable_lmcache", "LMCache", "drop --enable-lmcache"),
    ("enable_flexkv", "FlexKV", "drop --enable-flexkv"),
    ("enable_hisparse", "HiSparse", "drop --enable-hisparse"),
    ("radix_cache_backend", "another radix cache", "drop --radix-cache-backend"),
    ("enable_mixed_chunk", "mixing prefill and decode in a batch", "drop --enable-mixed-chunk"),
    ("enable_dp_attention", "data-parallel attention", "drop --enable-dp-attention"),
    ("enable_prefill_cp", "context parallelism of prefill", "drop --enable-prefill-cp"),
    ("enable_kv_cache_sharding", "one row on several GPUs", "drop --enable-kv-cache-sharding"),
    (
        "enable_unified_cache_external_linker",
        "a prefix cache in another store",
        "drop --enable-unified-cache-external-linker",
    ),
    ("enable_page_major_kv_layout", "a page-major pool", "drop --enable-page-major-kv-layout"),
    ("prefill_only_disable_kv_cache", "no KV cache", "drop --prefill-only-disable-kv-cache"),
    # They run a whole decode step without the attention backend.
    ("enable_nvidia_megakernel", "NVIDIA's megakernel", "drop --enable-nvidia-megakernel"),
    ("enable_amd_monokernel", "AMD's monokernels", "drop --enable-amd-monokernel"),
    # They keep what they report by slot, and a slot has several tokens, one after the other.
    (
        "enable_return_routed_experts",
        "reporting the experts of each token",
        "drop --enable-return-routed-experts",
    ),
    (
        "enable_return_indexer_topk",
        "reporting an indexer's choice for each token",
        "drop --enable-return-indexer-topk",
    ),
    # Of hybrid models: other ways of keeping their recurrent states, which nobody has tried.
    ("enable_linear_replayssm", "replaying recurrent states", "drop --enable-linear-replayssm"),
    (
        "enable_int8_mamba_checkpoint",
        "recurrent states in int8",
        "drop --enable-int8-mamba-checkpoint",
    ),
    # They bound, or capture anew, the decode graphs whose sizes the backend adds to.
    ("enable_paged_experts", "paging experts in", "drop --enable-paged-experts"),
    ("enable_pd_role_switch", "prefill/decode disaggregation", "drop --enable-pd-role-switch"),
    ("enable_two_batch_overlap", "two-batch overlap", "drop --enable-two-batch-overlap"),
    ("enable_pdmux", "PD multiplexing", "drop --enable-pdmux"),
    ("enable_unified_memory", "unified memory", "drop --enable-unified-memory"),
    ("enable_session_radix_cache", "the session cache", "drop --enable-session-radix-cache"),
    ("strip_thinking_cache", "stripping the thinking cache", "drop --strip-thinking-cache"),
    ("dllm_algorithm", "a diffusion language model", "drop --dllm-algorithm"),
    ("use_ray", "running schedulers in Ray actors", "drop --use-ray"),
    # It passes requests to the scheduler by itself, past every check of ours.
    ("smg_grpc_mode", "SGLang's legacy gRPC server", "drop --smg-grpc-mode; --grpc-port works"),
    ("grpc_mode", "SGLang's legacy gRPC server", "drop --grpc-mode; --grpc-port works"),
    ("encoder_only", "an encoder without a language model", "drop --encoder-only"),
    # Both decodes sum in an order that depends on who shares the batch.
    (
        "rl_on_policy_target",
        "an answer that is the same in every batch",
        "drop --rl-on-policy-target",
    ),
    (
        "enable_deterministic_inference",
        "an answer that is the same in every batch",
        "drop --enable-deterministic-inference",
    ),
)
_ONE = (
    ("page_size", "a page of several tokens", "set --page-size 1"),
    ("pp_size", "pipeline parallelism", "set --pp-size 1"),
    ("dcp_size", "decode context parallelism", "set --dcp-size 1"),
    ("attn_dp_size", "data-parallel attention", "set --attn-dp-size 1"),
    ("attn_cp_size", "context parallelism of attention", "set --attn-cp-size 1"),
    ("tokenizer_worker_num", "more than one tokenizer worker", "set --tokenizer-worker-num 1"),
)
#: Attention backends with pages of several tokens, whatever --page-size says; fa4 on some cards.
PAGED_BACKENDS = (
    *("trtllm_mha", "hpc_ops", "intel_xpu"),
    *("trtllm_mla", "flashmla", "cutedsl_mla"),
    "tokenspeed_mla",  # another name of cutedsl_mla
)
_BACKEND_FIELDS = {
    "attention_backend": "drop --attention-backend (a KV budget then takes flashinfer)",
    "prefill_attention_backend": "set --prefill-attention-backend flashinfer",
    "decode_attention_backend": "set --decode-attention-backend flashinfer",
}
#: SGLang's own: "none" or "null" turns them off.
_NONE = (
    (
        "elastic_ep_backend",
        "expert parallelism that grows and shrinks",
        "drop --elastic-ep-backend",
    ),
    ("kv_canary", "a check that no slot is overwritten", "drop --kv-canary"),
    ("decoupled_spec_role", "speculative decoding", "drop --decoupled-spec-role"),
    ("disaggregation_mode", "prefill/decode disaggregation", "drop --disaggregation-mode"),
)
_PAGES = "an attention backend with pages of several tokens, whatever --page-size says,"
#: CUDA graphs that a phase may have.
_GRAPHS = {"prefill": ("disabled",), "decode": ("full", "disabled")}
FLAG_RULES: tuple[FlagRule, ...] = (
    # Before page_size: they set it, and --page-size 1 would not help.
    *(
        FlagRule(field, lambda v: v not in PAGED_BACKENDS, _PAGES, fix)
        for field, fix in _BACKEND_FIELDS.items()
    ),
    *(FlagRule(field, _unset, feature, fix) for field, feature, fix in _NOT_SET),
    *(FlagRule(field, lambda v: v in (None, 1), feature, fix) for field, feature, fix in _ONE),
    *(
        FlagRule(field, lambda v: v in (None, "none", "null"), feature, fix)
        for field, feature, fix in _NONE
    ),
    FlagRule(
        "kv_cache_dtype",  # what the kernels read
        lambda v: v in (None, "auto", "bf16", "bfloat16", "fp8_e4m3"),
        "a KV cache of that type",
        "set --kv-cache-dtype fp8_e4m3, or drop it",
    ),
    FlagRule(
        "mamba_radix_cache_strategy",
        lambda v: v in (None, "auto", "extra_buffer", "no_buffer"),
        "another way of keeping recurrent states for the radix cache",
        "set --mamba-radix-cache-strategy extra_buffer, or drop it",
    ),
    FlagRule(
        "device",
        lambda v: v in (None, "cuda", "cpu"),
        "another device than cuda and cpu",
        "drop --device",
    ),
    FlagRule(
        "cuda_graph_backend_prefill",
        lambda v: v in (None, *_GRAPHS["prefill"]),
        "a CUDA graph of prefill",
        "drop --cuda-graph-backend-prefill",
    ),
    FlagRule(
        "cuda_graph_backend_decode",
        lambda v: v in (None, *_GRAPHS["decode"]),
        "a CUDA graph of decode in pieces",
        "set --cuda-graph-backend-decode full",
    ),
    FlagRule(
        "chunked_prefill_size",
        lambda v: v is None or v <= 0 or v >= MIN_CHUNKED_PREFILL_SIZE,
        f"a prefill chunk under {MIN_CHUNKED_PREFILL_SIZE} tokens",
        f"set --chunked-prefill-size to at least {MIN_CHUNKED_PREFILL_SIZE}, or -1",
    ),
)
VARIABLE_RULES: tuple[VariableRule, ...] = (
    VariableRule("SGLANG_RUST_SERVER", "SGLang's HTTP server in Rust"),
    # It replays what the backend reads before a step; ours is new in every step.
    VariableRule(
        "SGLANG_ENABLE_METADATA_GLUE_GRAPH", "a CUDA graph of what the attention backend prepares"
    ),
    # A prompt's cut and the overwriting begin when the first row needs them.
    VariableRule(
        "SGLANG_CRASH_ON_TRITON_LOAD_AFTER_READY", "ending the server at a kernel's first use"
    ),
    # Of hybrid models, as the arguments above.
    VariableRule(
        "SGLANG_OPT_MAMBA_SKIP_DECODE_LOCK", "giving up the states of running requests' prefixes"
    ),
)


def _paged_by_the_card(server_args: Any) -> list[FlagRule]:
    """fa4 takes pages of 128 on cards of compute capability 10, where SGLang has set them."""
    if getattr(server_args, "page_size", None) != 128:
        return []
    return [
        FlagRule(field, lambda v: v != "fa4", _PAGES, fix) for field, fix in _BACKEND_FIELDS.items()
    ]


def _typed_graphs(value: Any) -> dict[str, Any]:
    """The graph of each phase in a ``--cuda-graph-config`` as it was typed: JSON, or its object."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}  # SGLang says what is wrong with it
    if not isinstance(value, Mapping):
        return {}
    phases = {phase: value.get(phase) for phase in _GRAPHS}
    return {
        phase: given.get("backend") for phase, given in phases.items() if isinstance(given, Mapping)
    }


def _graph_conflicts(graphs: Mapping[str, Any]) -> list[Problem]:
    """Graphs by phase, of ``cuda_graph_config``: it wins over every other word on them."""
    return [
        Problem(
            f"cuda_graph_config: a CUDA graph of {phase} of kind {kind!r} is not supported with a "
            f"KV budget",
            f'set {phase} to {{"backend": "{_GRAPHS[phase][0]}"}} in --cuda-graph-config',
        )
        for phase, kind in graphs.items()
        if kind is not None and kind not in _GRAPHS[phase]
    ]


def variable_conflicts(is_on: Callable[[str], Any]) -> list[Problem]:
    """Each variable of SGLang that does not go with a KV budget; `is_on` says whether it is on."""
    return [
        Problem(f"{rule.name}=1: {rule.feature} is not supported with a KV budget", rule.fix)
        for rule in VARIABLE_RULES
        if is_on(rule.name)
    ]


def flag_conflicts(server_args: Any) -> list[Problem]:
    """Each server argument that does not go with a KV budget."""
    rules = (*_paged_by_the_card(server_args), *FLAG_RULES)
    conflicts = [
        Problem(
            f"{rule.field}={getattr(server_args, rule.field)!r}: {rule.feature} is not supported "
            f"with a KV budget",
            rule.fix,
        )
        for rule in rules
        if not rule.is_fine(getattr(server_args, rule.field, None))
    ]
    conflicts += _graph_conflicts(_typed_graphs(getattr(server_args, "cuda_graph_config", None)))
    if getattr(server_args, "enable_priority_scheduling", False) and not getattr(
        server_args, "disable_priority_preemption", False
    ):
        conflicts.append(
            Problem(
                "enable_priority_scheduling=True: preemption of running requests by priority is "
                "not supported with a KV budget",
                "add --disable-priority-preemption",
            )
        )
    return conflicts


def refuse_release() -> None:
    """Raise UnsupportedSetup on an SGLang that was not tested with KV budgets."""
    if message := refusal("--kv-budget"):
        raise UnsupportedSetup(message)


def refuse_resolved(settings: Any, is_on: Callable[[str], Any]) -> None:
    """Raise UnsupportedSetup for the first thing in SGLang's worked-out settings, or its variables.

    Parameters
    ----------
    settings : object
        The view of `settings.resolved`.
    is_on : callable
        Whether a variable of SGLang is on, by its name.
    """
    conflicts = variable_conflicts(is_on) + flag_conflicts(settings)
    if runs_on_gpu(settings):
        chosen = getattr(settings, "cuda_graph_config", None)
        graphs = {phase: getattr(chosen, phase, None) for phase in _GRAPHS}
        conflicts += _graph_conflicts(
            {phase: getattr(graph, "backend", None) for phase, graph in graphs.items()}
        )
    refuse_first(conflicts)


def kernel_conflict(query_heads: int, kv_heads: int, head_dim: int, v_head_dim: int) -> str:
    """Why the fused decode kernel does not take a model's heads; empty if it does."""
    for size in (head_dim, v_head_dim):
        if size not in HEAD_DIMS:
            return f"head_dim={size}: the triton decode kernel takes {HEAD_DIMS}"
    group = query_heads // kv_heads
    if group > MAX_GROUP:
        return f"{group} query heads a KV head: the triton decode kernel takes {MAX_GROUP} at most"
    return ""


def refuse_model(model: Any, config: LongFlowConfig) -> None:
    """Raise UnsupportedSetup if a model (SGLang's ``ModelConfig``) does not go with the budget."""
    from sglang.srt.configs.model_config import AttentionArch

    kind = getattr(model.hf_text_config, "model_type", "?")
    # Whether it takes anything but text SGLang says itself: Transformers gives some models of text
    # a vision_config too.
    conflict = model_conflict(language_model(model.hf_text_config.to_dict()))
    if model.is_multimodal and model.hf_config.model_type not in IMAGES:
        conflict = media_conflict(str(kind))
    elif model.attention_arch == AttentionArch.MLA:
        conflict = f"model_type={kind!r}: MLA attention is not supported with a KV budget"
    if conflict:
        raise UnsupportedSetup(f"{conflict}; {FIX}")
    heads = (
        *(model.num_attention_heads, model.get_total_num_kv_heads()),
        *(model.head_dim, model.v_head_dim),
    )
    if config.uses_fused_decode and (conflict := kernel_conflict(*heads)):
        raise UnsupportedSetup(f"{conflict}; set --kv-decode-kernel reference")
    refuse_first(budget_problems(config, model.context_len))


def _graph_sizes_are_open(settings: Any) -> bool:
    sizes = ("cuda_graph_bs_decode", "cuda_graph_max_bs_decode", "cuda_graph_config")
    return not any(getattr(settings, field, None) for field in sizes)


def graphs_cover_rows(settings: Any, config: LongFlowConfig) -> bool:
    """Whether the backend adds sizes of decode CUDA graphs, up to the rows that fit the pool."""
    return runs_on_gpu(settings) and config.uses_fused_decode and _graph_sizes_are_open(settings)


def defaults(settings: Any, config: LongFlowConfig) -> dict[str, Any]:
    """What a budget server needs of SGLang's arguments and the operator left open, by field.

    On a GPU the prompt's last queries are read in the prefill step, so its CUDA graph is off; with
    the reference decode, which scores in plain PyTorch, that of decode too.
    """
    wanted: dict[str, Any] = {"page_size": 1}
    if not runs_on_gpu(settings):
        # An idle scheduler polls; on a CPU it would take a core from the model.
        wanted["sleep_on_idle"] = True
    else:
        backends = ("attention_backend", "prefill_attention_backend", "decode_attention_backend")
        if all(getattr(settings, field) is None for field in backends):
            wanted["attention_backend"] = "flashinfer"
        if not config.uses_fused_decode:
            wanted["disable_cuda_graph"] = True
        else:
            wanted["disable_prefill_cuda_graph"] = True
            # The backend adds sizes when it knows the pool; this one is for SGLang's estimate of
            # the memory that graphs take.
            if _graph_sizes_are_open(settings) and device.first_gpu_bytes() > LARGE_GPU_BYTES:
                wanted["cuda_graph_max_bs_decode"] = CUDA_GRAPH_MAX_BS
    return {
        field: value
        for field, value in wanted.items()
        if getattr(settings, field, None) in (None, False)
    }
