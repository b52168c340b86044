# SPDX-License-Identifier: Apache-2.0
"""Start of a scheduler process: activate, verify, and look at what SGLang built."""

from __future__ import annotations

import logging
from typing import Any

from sglang.srt.runtime_context import get_parallel

from sglang_longflow.core import runtime
from sglang_longflow.core.counters import row_capacity, unplanned_rows
from sglang_longflow.errors import ConfigError, HookNotApplied, UnsupportedSetup
from sglang_longflow.hooks import metrics, slots, start_check, stats, verify
from sglang_longflow.hooks.server_args import is_on, require_checked
from sglang_longflow.hooks.sglang_types import Original, Scheduler
from sglang_longflow.settings import compatibility
from sglang_longflow.settings.hybrid_models import is_hybrid
from sglang_longflow.settings.refused_models import FIX
from sglang_longflow.settings.resolved import resolved

logger = logging.getLogger(__name__)


def init(original: Original, self: Scheduler, server_args: Any, *args: Any, **kwargs: Any) -> Any:
    """Around ``Scheduler.__init__``: what an operator can change ends the server with one line."""
    try:
        return _init(original, self, server_args, *args, **kwargs)
    except (ConfigError, UnsupportedSetup, HookNotApplied) as error:
        start_check.stop_server(str(error))


def _init(original: Original, self: Scheduler, server_args: Any, *args: Any, **kwargs: Any) -> Any:
    state = runtime.activate(server_args)
    if state is None:
        return original(self, server_args, *args, **kwargs)
    settings = resolved(server_args)
    compatibility.refuse_release()
    require_checked(server_args, state.config)
    compatibility.refuse_resolved(settings, is_on)
    verify.require_all()
    verify.require_reached(type(self))
    slots.register_alloc_for_decode(settings.device)
    original(self, server_args, *args, **kwargs)
    verify.require_patches()
    _check_parts(self, settings.device)
    _check_pools(self, state)
    ranks = get_parallel()
    if settings.enable_metrics and ranks.tp_rank == 0:
        capacity = row_capacity(
            self.max_total_num_tokens, state.config.kv_budget, self.max_running_requests
        )
        state.exporter = metrics.Exporter(
            settings.served_model_name, capacity, ranks.dp_rank, state.config.kv_planned_rows
        )
    if ranks.tp_rank == 0:
        logger.info(
            "longflow: kv_budget=%d policy=%s pool=%d tokens, rows that fit at the budget=%s, "
            "device state=%.2f MiB, L2 cache set aside=%.1f MiB",
            state.config.kv_budget,
            state.config.kv_policy,
            self.max_total_num_tokens,
            stats.rows_that_fit(self, state.config.kv_budget) or "-",
            state.device_state_bytes / 2**20,
            state.l2_set_aside_bytes / 2**20,
        )
        _warn_if_graphs_end_early(self, state)
        _warn_if_unplanned(self, state)


def _warn_if_graphs_end_early(scheduler: Scheduler, state: runtime.Runtime) -> None:
    """Warn if more requests fit at the budget than decode CUDA graphs take."""
    runner = scheduler.tp_worker.model_runner.decode_cuda_graph_runner
    rows = stats.rows_that_fit(scheduler, state.config.kv_budget)
    if rows is not None and hasattr(runner, "max_bs") and rows > runner.max_bs:
        logger.warning(
            "longflow: %d requests fit at the budget, decode CUDA graphs end at %d: set "
            "--cuda-graph-max-bs-decode %d",
            rows,
            runner.max_bs,
            rows,
        )


def _warn_if_unplanned(scheduler: Scheduler, state: runtime.Runtime) -> None:
    """Warn if the pool holds other rows than a deployment's numbers count on."""
    fits = stats.rows_that_fit(scheduler, state.config.kv_budget)
    if unplanned := unplanned_rows(state.config.kv_planned_rows, fits):
        logger.warning("longflow: %s", unplanned)


def _check_parts(scheduler: Scheduler, device_type: str) -> None:
    """What SGLang asks for at each step must be ours; others may have come after us."""
    from sglang_longflow.hooks.admission import BudgetAdder

    adder = scheduler.get_prefill_adder_class()
    if not issubclass(adder, BudgetAdder):
        raise HookNotApplied(
            f"Scheduler.get_prefill_adder_class: {adder.__module__}.{adder.__qualname__} admits "
            f"requests, and knows no budget; remove the plugin that it comes from"
        )
    slots.require_alloc_for_decode(device_type)


def _check_pools(scheduler: Scheduler, state: runtime.Runtime) -> None:
    from sglang.srt.layers.attention.hybrid_linear_attn_backend import HybridLinearAttnBackend
    from sglang.srt.mem_cache.memory_pool import (
        HybridLinearKVPool,
        HybridReqToTokenPool,
        MHATokenToKVPool,
        ReqToTokenPool,
    )
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

    from sglang_longflow.backend.attention import LongFlowAttnBackend

    budget, pool_tokens = state.config.kv_budget, scheduler.max_total_num_tokens
    if budget > pool_tokens:
        raise ConfigError(
            f"kv_budget={budget}: larger than the whole KV pool of {pool_tokens} tokens; lower "
            f"--kv-budget or give the pool more memory (--mem-fraction-static)"
        )
    if type(scheduler.tree_cache) is not UnifiedRadixCache:
        raise UnsupportedSetup(
            f"prefix cache {type(scheduler.tree_cache).__name__}: not supported with a KV budget; "
            f"use SGLang's default radix cache"
        )
    rows = scheduler.req_to_token_pool
    if type(rows) not in (ReqToTokenPool, HybridReqToTokenPool):
        raise UnsupportedSetup(
            f"row table {type(rows).__name__}: only SGLang's ReqToTokenPool and "
            f"HybridReqToTokenPool are supported with a KV budget"
        )
    text = scheduler.model_config.hf_text_config
    if type(rows) is HybridReqToTokenPool and not is_hybrid({"model_type": text.model_type}):
        raise UnsupportedSetup(
            f"model_type={text.model_type!r}: recurrent layers of this kind are not tested with a "
            f"KV budget; {FIX}"
        )
    kv_pool = scheduler.token_to_kv_pool_allocator.get_kvcache()
    if type(kv_pool) is HybridLinearKVPool:
        kv_pool = kv_pool.full_kv_pool
    if type(kv_pool) is not MHATokenToKVPool:
        raise UnsupportedSetup(
            f"KV pool {type(kv_pool).__name__}: only SGLang's MHATokenToKVPool is supported with a "
            f"KV budget"
        )
    backend = scheduler.tp_worker.model_runner.attn_backend
    if isinstance(backend, HybridLinearAttnBackend):
        backend = backend.full_attn_backend
    if not isinstance(backend, LongFlowAttnBackend):
        raise UnsupportedSetup(
            f"attention backend {type(backend).__name__}: was not wrapped; choose another "
            f"--attention-backend"
        )
