# SPDX-License-Identifier: Apache-2.0
"""LongFlowAttnBackend: any SGLang attention backend, with rows that stop growing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.runtime_context import get_exec, get_parallel

from sglang_longflow.backend.decode_fused import FusedDecode
from sglang_longflow.backend.decode_reference import ReferenceDecode
from sglang_longflow.backend.graph_sizes import graph_batch_sizes
from sglang_longflow.backend.moves import copy_moved_kv
from sglang_longflow.backend.policy_memory import PolicyMemory
from sglang_longflow.backend.pool import kv_layers
from sglang_longflow.backend.prefill_plan import PrefillPlan
from sglang_longflow.backend.prompt_cut import PromptCut
from sglang_longflow.backend.sglang_types import AttentionLayer, ForwardBatch, ModelRunner
from sglang_longflow.backend.victim_state import VictimState
from sglang_longflow.core.contracts import DecodeView, PrefillView, PromptRow
from sglang_longflow.core.counters import row_capacity
from sglang_longflow.core.runtime import Runtime
from sglang_longflow.errors import UnsupportedSetup

#: What a layer may ask of attention that neither decode kernel nor scores know: attribute of
#: SGLang's RadixAttention, whether its value is plain attention, and a name.
_LAYER_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("sliding_window_size", lambda v: v is None or v <= 0, "a sliding window"),
    ("xai_temperature_len", lambda v: v is None or v <= 0, "a temperature by length"),
    ("is_cross_attention", lambda v: not v, "cross attention"),
    ("use_irope", lambda v: not v, "attention in chunks"),
    ("logit_capping_method", lambda v: v in (None, "tanh"), "a cap of logits other than tanh"),
    ("attn_type", lambda v: getattr(v, "value", v) in (None, "decoder"), "attention both ways"),
)


def refuse_layer(layer: AttentionLayer) -> None:
    """Raise UnsupportedSetup if a layer's attention is not the one that rows are scored by."""
    for name, is_fine, what in _LAYER_RULES:
        if not is_fine(getattr(layer, name, None)):
            raise UnsupportedSetup(
                f"layer {layer.layer_id} has {name}={getattr(layer, name)!r}: {what} is not "
                f"supported with a KV budget; drop --kv-budget or choose another --model-path"
            )


def refuse_keywords(layer: AttentionLayer, kwargs: dict[str, Any]) -> None:
    """No model that a KV budget takes passes anything beside q, k and v.

    What others pass (``sinks`` of gpt-oss, ``slopes`` of ALiBi, MLA's halves) changes what
    attention is.

    Raises
    ------
    UnsupportedSetup
        Names what the model passes; None is nothing.
    """
    names = [name for name, value in kwargs.items() if value is not None]
    if names:
        raise UnsupportedSetup(
            f"layer {layer.layer_id} calls attention with {', '.join(names)}: not supported with a "
            f"KV budget; drop --kv-budget or choose another --model-path"
        )


def _of_inner(name: str) -> Any:
    """An attribute that the base class gives a value, so that `__getattr__` is not asked."""
    return property(
        lambda backend: getattr(backend.inner, name),
        lambda backend, value: setattr(backend.inner, name, value),
    )


class LongFlowAttnBackend(AttentionBackend):
    """Wraps the backend the server would use; prefill stays with it.

    - A prefill step also records which positions of an over-long prompt each layer keeps.
    - A decode step first copies the K/V of rows that become owners of their slots.
    - Then `FusedDecode` (Triton kernels) or `ReferenceDecode` (SGLang's attention, and the score in
      PyTorch) attends to the resident tokens, writes each full row's K/V over its victim, and picks
      the next one, on the device.
    """

    def __init__(self, inner: AttentionBackend, model_runner: ModelRunner, runtime: Runtime):
        super().__init__()
        config = runtime.config
        self.inner = inner
        self.runtime = runtime
        self.req_to_token_pool = model_runner.req_to_token_pool
        self.token_to_kv_pool = model_runner.token_to_kv_pool
        self.layers = runtime.kv_layers = kv_layers(model_runner)
        self._checked_layers: set[int] = set()
        num_rows, row_slots = self.req_to_token_pool.req_to_token.shape
        device = self.req_to_token_pool.req_to_token.device
        self.fused = config.uses_fused_decode
        num_slots, kv_heads, head_dim = self.token_to_kv_pool.get_key_buffer(
            self.layers.ids[0]
        ).shape
        policy = config.policy()
        self.state = VictimState(
            len(self.layers),
            num_rows,
            policy.recent_tokens_kept,
            device,
            kv_heads if config.kv_victims == "kv_head" else 1,
        )
        num_q_heads = model_runner.model_config.num_attention_heads // get_parallel().attn_tp_size
        self.memory = PolicyMemory(
            policy.needs,
            num_layers=len(self.layers),
            num_rows=num_rows,
            num_slots=num_slots,
            num_q_heads=num_q_heads,
            head_dim=head_dim,
            dtype=model_runner.dtype,
            device=device,
            victim_heads=self.state.victim_heads,
        )
        self.decode = (
            FusedDecode(
                model_runner,
                self.state,
                policy,
                num_q_heads,
                config.row_tokens(row_slots),
                self.memory,
                self.layers,
            )
            if self.fused
            else ReferenceDecode(inner, model_runner, self.state, self.memory, self.layers)
        )
        self.prompt_cut = PromptCut(
            self.req_to_token_pool.req_to_token, self.token_to_kv_pool, self.layers, self.fused
        )
        if self.fused:
            self.prompt_cut.compile(num_q_heads, model_runner.dtype)
            self._set_graph_batch_sizes(model_runner, config.kv_budget)
        self._record_state_bytes()
        runtime.l2_set_aside_bytes = self.decode.l2_bytes
        self._prepare_prefill = inner.init_forward_metadata
        if device.type == "cuda" and PrefillPlan.can_plan(inner):
            self._prepare_prefill = PrefillPlan(inner).prepare

    @staticmethod
    def _set_graph_batch_sizes(model_runner: ModelRunner, budget: int) -> None:
        """Have decode CUDA graphs captured for every batch that fits the pool at the budget."""
        graphs = get_exec().graph.cuda_graph_config.decode  # what the graph runner reads
        rows = row_capacity(
            model_runner.max_total_num_tokens, budget, model_runner.req_to_token_pool.size
        )
        if rows and graphs.bs and model_runner.server_args._longflow_graphs_cover_rows:
            graphs.bs = graph_batch_sizes(graphs.bs, rows)
            graphs.max_bs = graphs.bs[-1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)

    # What the base class defines, and the inner backend may override. Not `shared_read_ends` and
    # what belongs to it: the prompt cut reads SGLang's table of slots until a prefill's last layer,
    # which is what the base class assumes. Nor `get_fused_kv_write_buffers`: K/V is written here.
    forward_metadata = _of_inner("forward_metadata")
    kv_index_translator = _of_inner("kv_index_translator")
    data_type = _of_inner("data_type")
    kv_cache_dtype = _of_inner("kv_cache_dtype")
    extend_dummy_seqs_capped_by_req_pool = _of_inner("extend_dummy_seqs_capped_by_req_pool")

    @property
    def needs_cpu_seq_lens(self) -> bool:
        return True

    def support_triton(self) -> bool:
        return bool(self.inner.support_triton())

    def get_cuda_graph_seq_len_fill_value(self) -> Any:
        return self.inner.get_cuda_graph_seq_len_fill_value()

    def get_indexer_metadata(self, layer_id: int, forward_batch: ForwardBatch) -> Any:
        return self.inner.get_indexer_metadata(layer_id, forward_batch)

    # preparation of a step

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        view = self.runtime.take_view(forward_batch.rids)
        self.prompt_cut.begin(view.rows if isinstance(view, PrefillView) else ())
        if not forward_batch.forward_mode.is_decode():
            self._prepare_prefill(forward_batch)
            return
        assert not isinstance(view, PrefillView)  # a decode batch brings its own
        self._begin_moved_rows(forward_batch.req_pool_indices, view)
        self.decode.begin(forward_batch, view)

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        self.decode.init_cuda_graph_state(max_bs)
        self._record_state_bytes()

    def _record_state_bytes(self) -> None:
        self.runtime.device_state_bytes = self.state.state_bytes + self.decode.nbytes

    def init_forward_metadata_out_graph(
        self, forward_batch: ForwardBatch, in_capture: bool = False
    ) -> None:
        """Before a decode graph is captured or replayed; nothing else has graphs with a budget."""
        if not forward_batch.forward_mode.is_decode():
            raise RuntimeError(
                f"longflow: a CUDA graph of {forward_batch.forward_mode} is not supported with a "
                f"KV budget"
            )
        assert isinstance(self.decode, FusedDecode)  # the reference decode has no graphs
        if in_capture:
            self.decode.begin_capture(forward_batch.batch_size)
            return
        real = forward_batch.batch_size - forward_batch.num_padding
        view = self.runtime.take_replay_view(real)
        self._begin_moved_rows(forward_batch.req_pool_indices, view)
        self.decode.begin_replay(forward_batch, view)

    def _begin_moved_rows(self, req_pool_indices: torch.Tensor, view: DecodeView | None) -> None:
        if view is None:
            return
        copy_moved_kv(view.moves, self.token_to_kv_pool, self.layers)
        fresh = [(i, view.kv_lens[i]) for i, is_fresh in enumerate(view.fresh) if is_fresh]
        if fresh:
            index, budgets = torch.tensor(fresh).T.to(req_pool_indices.device, non_blocking=True)
            self.state.start_cut_rows(req_pool_indices[index], budgets)

    # one layer of a step

    def _check(self, layer: AttentionLayer, kwargs: dict[str, Any]) -> None:
        if kwargs:
            refuse_keywords(layer, kwargs)
        if layer.layer_id not in self._checked_layers:
            refuse_layer(layer)
            self._checked_layers.add(layer.layer_id)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: AttentionLayer,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        self._check(layer, kwargs)
        return self.decode.forward(q, k, v, layer, forward_batch, save_kv_cache)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: AttentionLayer,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        self._check(layer, kwargs)
        out = self.inner.forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
        if self.prompt_cut.rows and k is not None:
            queries = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
            self.prompt_cut.record_layer(queries, layer)
            if self.memory.queries is not None:
                for row in self.prompt_cut.rows:
                    self._record_prompt_queries(row, queries, layer)
        return out

    def _record_prompt_queries(
        self, row: PromptRow, queries: torch.Tensor, layer: AttentionLayer
    ) -> None:
        window = self.memory.needs.query_window
        last = torch.arange(row.prompt_tokens - window, row.prompt_tokens, device=queries.device)
        rows = torch.full_like(last, row.req_pool_idx)
        kept = queries[row.query_end - window : row.query_end]
        self.memory.record_queries(self.layers.place(layer.layer_id), rows, last, kept)
