# SPDX-License-Identifier: Apache-2.0
"""The parts of SGLang's objects that the hooks read and write; mypy does not follow SGLang.

What a hook only hands on is ``Any``. Attributes that begin with ``longflow_`` are ours: SGLang's
objects carry them from one hook to another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from sglang_longflow.core.contracts import DecodeView, KVRow, PrefillView

#: SGLang's own function, as an "around" hook is given it.
Original = Callable[..., Any]


class SamplingParams(Protocol):
    max_new_tokens: int
    min_new_tokens: int
    custom_params: Any  # as the client sent it


class ReqKvInfo(Protocol):
    """``schedule_batch.ReqKvInfo``: the slots that a request holds."""

    req_pool_idx: int
    cache_protected_len: int
    kv_committed_len: int
    kv_allocated_len: int

    @property
    def holds_kv(self) -> bool: ...


class Req(Protocol):
    """``schedule_batch.Req``: one request in the scheduler."""

    rid: str
    origin_input_ids: Sequence[int]
    output_ids: Sequence[int]
    output_ids_through_stop: Sequence[int]
    full_untruncated_fill_ids: Sequence[int]
    prefix_len: int
    extend_end: int
    sampling_params: SamplingParams
    last_node: Any
    lock: Any  # TreeLock, None if it holds nothing of the tree
    kv: ReqKvInfo
    skip_radix_cache_insert: bool
    is_retracted: bool
    customized_info: dict[str, Any] | None
    to_finish: Any
    time_stats: Any
    longflow_row: KVRow | None

    def finished(self) -> bool: ...

    def set_finish_with_abort(self, message: str) -> None: ...


class ScheduleBatch(Protocol):
    reqs: list[Req]
    extend_lens: list[int]
    req_pool_indices: torch.Tensor
    seq_lens: torch.Tensor
    req_to_token_pool: Any
    tree_cache: Any
    model_config: Any
    device: str
    batch_is_full: bool
    longflow_view: DecodeView | PrefillView | None

    def is_empty(self) -> bool: ...


class PrefillAdder(Protocol):
    """``schedule_policy.PrefillAdder``: one admission pass."""

    running_batch: ScheduleBatch | None
    can_run_list: list[Req]
    rem_input_tokens: int
    rem_chunk_tokens: int | None
    chunked_req_limit: int | None
    rem_total_tokens: int
    memory_budget: Any  # PrefillBudget: total_offset, current_offset
    tree_cache: Any

    def budget_state(self) -> Any: ...

    def _lock_node(self, node: Any) -> Any: ...


class Scheduler(Protocol):
    running_batch: ScheduleBatch
    last_batch: Any
    chunked_req: Req | None
    waiting_queue: list[Req]
    tree_cache: Any
    req_to_token_pool: Any
    token_to_kv_pool_allocator: Any
    tp_worker: Any
    model_config: Any
    server_args: Any
    enable_overlap: bool
    max_new_tokens_limit: int | None
    max_queued_requests: int | None
    max_running_requests: int
    max_total_num_tokens: int
    _engine_paused: bool

    def get_prefill_adder_class(self) -> type: ...

    def send_abort_output(self, abort_req: Any, req: Any) -> None: ...

    def _release_aborted_request(self, req: Req) -> None: ...


class TokenizerManager(Protocol):
    """``tokenizer_manager.TokenizerManager``: what the HTTP process or an engine sends through."""

    server_args: Any
    model_config: Any
    sampling_params_class: Any
    preferred_sampling_params: Any
    server_status: Any
    gracefully_exit: bool
    is_pause: bool
    enable_metrics: bool
    metrics_collector: Any
    _result_dispatcher: Any

    async def _async_dispatch_to_scheduler(self, obj: Any) -> None: ...
