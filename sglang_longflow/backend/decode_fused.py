# SPDX-License-Identifier: Apache-2.0
"""Decode in LongFlow's own kernels: write, attend, score and choose, CUDA graphs on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longflow_kernels.attend_score_evict.arguments import DecodeStep, KVCache
from longflow_kernels.attend_score_evict.launch import LaunchConfig, launch_config
from longflow_kernels.attend_score_evict.layout import NUM_FIELDS
from longflow_kernels.attend_score_evict.op import attend_score_evict, gather_kv_indices
from longflow_kernels.attend_score_evict.rows import pack_columns, pack_full_rows
from longflow_kernels.attend_score_evict.workspace import Workspace
from longflow_kernels.target import target_of
from sglang_longflow.backend.policy_memory import PolicyMemory
from sglang_longflow.backend.pool import scale_of
from sglang_longflow.backend.sglang_types import AttentionLayer, ForwardBatch, ModelRunner
from sglang_longflow.backend.victim_state import VictimState
from sglang_longflow.core.contracts import DecodeView
from sglang_longflow.core.layers import KVLayers
from sglang_longflow.policies import Policy


@dataclass(frozen=True)
class PreparedStep:
    """A decode step on the device, in memory that a CUDA graph may have captured.

    Attributes
    ----------
    fields : torch.Tensor
        [NUM_FIELDS, batch] int32, from `longflow_kernels`' ``pack_columns``.
    kv_indices : torch.Tensor
        int32 pool slots of all rows, one after the other. SGLang's scheduler may write
        ``req_to_token`` as soon as the step's preparation is over, so the step keeps a copy.
    config : LaunchConfig
    """

    fields: torch.Tensor
    kv_indices: torch.Tensor
    config: LaunchConfig


class FusedDecode:
    """Runs every decode step of a server with a budget, full-KV rows included.

    Parameters
    ----------
    model_runner : ModelRunner
    state : VictimState
    policy : Policy
        The server's; its protected tokens and its `rank_rule` are those of all requests.
    num_q_heads : int
        Of this tensor-parallel rank.
    row_tokens : int
        Most tokens that a row may hold resident.
    memory : PolicyMemory
        What the server's policy remembers.
    layers : KVLayers
    """

    def __init__(
        self,
        model_runner: ModelRunner,
        state: VictimState,
        policy: Policy,
        num_q_heads: int,
        row_tokens: int,
        memory: PolicyMemory,
        layers: KVLayers,
    ):
        self.memory = memory
        self.layers = layers
        self.rule = policy.rank_rule
        self.row_states = [memory.row_state(place, state) for place in range(len(layers))]
        self.row_tokens = row_tokens
        self.req_to_token = model_runner.req_to_token_pool.req_to_token
        self.token_to_kv_pool = model_runner.token_to_kv_pool
        key = self.token_to_kv_pool.get_key_buffer(layers.ids[0])
        self.device = key.device
        self.num_kv_heads, self.head_dim = key.shape[1:]
        self.itemsize = key.dtype.itemsize
        self.num_sms = (
            torch.cuda.get_device_properties(self.device).multi_processor_count
            if self.device.type == "cuda"
            else 1
        )
        self.shared_bytes = target_of(self.device).shared_bytes
        self.workspace = Workspace(
            max_batch=self.req_to_token.shape[0],
            capacity_tokens=key.shape[0],
            num_q_heads=num_q_heads,
            v_head_dim=self.token_to_kv_pool.get_value_buffer(layers.ids[0]).shape[2],
            victim_heads=state.victim_heads,
            device=self.device,
            max_partials=4 * self.num_sms,
        )
        # Scored rows hold no more than the pool.
        self.l2_bytes = self.workspace.keep_in_l2(key.shape[0])
        self._step: PreparedStep | None = None
        self._graph_fields: torch.Tensor | None = None
        self._graph_indices: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of device memory beside the model and the pool, graph buffers included."""
        graph = [t for t in (self._graph_fields, self._graph_indices) if t is not None]
        graph_bytes: int = sum(t.numel() * t.element_size() for t in graph)
        return self.memory.nbytes + self.workspace.nbytes + graph_bytes

    # preparation, outside a graph

    def begin(self, forward_batch: ForwardBatch, view: DecodeView | None) -> None:
        """Prepare an eager step; `view` is None if no row of the batch is bounded."""
        if forward_batch.rids is None:  # a batch that SGLang makes up to warm up
            self._step = self._padded_step(forward_batch.batch_size)
            return
        host = self._pack(forward_batch.seq_lens_cpu, view)
        fields = self._to_device(host)
        tokens = sum(view.kv_lens) if view else forward_batch.seq_lens_sum
        kv_indices = torch.empty(tokens, dtype=torch.int32, device=self.device)
        gather_kv_indices(self.req_to_token, forward_batch.req_pool_indices, fields, kv_indices)
        self._step = PreparedStep(fields, kv_indices, self._config(host.shape[1]))

    def _padded_step(self, batch: int) -> PreparedStep:
        fields = torch.zeros(NUM_FIELDS, batch, dtype=torch.int32, device=self.device)
        return PreparedStep(fields, fields[0], self._config(batch))

    def init_cuda_graph_state(self, max_bs: int) -> None:
        """Memory that all captured graphs read; zero lengths are padded rows."""
        self._graph_fields = torch.zeros(NUM_FIELDS, max_bs, dtype=torch.int32, device=self.device)
        self._graph_indices = torch.zeros(
            max_bs * self.row_tokens, dtype=torch.int32, device=self.device
        )

    def begin_capture(self, batch: int) -> None:
        """Prepare the step that a graph captures: every row padded."""
        assert self._graph_fields is not None
        self._graph_fields.zero_()
        self._step = self._graph_step(batch)

    def begin_replay(self, forward_batch: ForwardBatch, view: DecodeView | None) -> None:
        """Prepare a step that a graph replays; rows after the real ones are padded."""
        batch = forward_batch.batch_size
        real = batch - forward_batch.num_padding
        host = self._pack(forward_batch.seq_lens_cpu[:real], view)
        self._step = step = self._graph_step(batch)
        step.fields[:, real:].zero_()
        step.fields[:, :real].copy_(self._to_device(host))
        gather_kv_indices(
            self.req_to_token,
            forward_batch.req_pool_indices[:real],
            step.fields[:, :real],
            step.kv_indices,
        )

    def _graph_step(self, batch: int) -> PreparedStep:
        assert self._graph_fields is not None and self._graph_indices is not None
        return PreparedStep(self._graph_fields[:, :batch], self._graph_indices, self._config(batch))

    def _pack(self, seq_lens_cpu: torch.Tensor, view: DecodeView | None) -> torch.Tensor:
        if view is None:
            return pack_full_rows(seq_lens_cpu)
        batch = len(view.kv_lens)
        scored, by_attention, remembers = [False] * batch, [False] * batch, [0] * batch
        given, written = [-1] * batch, [0] * batch
        for row in view.full_rows:
            policy, i = row.budget.policy, row.batch_index
            written[i] = row.overwrites
            if policy.ranks_by is None:
                known = policy.known_victim(row.budget.tokens, row.overwrites)
                assert known is not None, f"{policy.name} is not fused"
                given[i] = known
            else:
                scored[i] = True
                by_attention[i] = policy.ranks_by == "attention"
                remembers[i] = policy.rank_rule.remembers
                assert not remembers[i] or self.memory.needs.slot_score, policy.name
        return pack_columns(
            view.kv_lens,
            overwrites=view.overwrite,
            scored=scored,
            by_attention=by_attention,
            given_victims=given,
            written=written,
            remembers=remembers,
            capacity=self.workspace.score_capacity,
        )

    def _to_device(self, host: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":
            host = host.pin_memory()
        return host.to(self.device, non_blocking=True)

    def _config(self, batch: int) -> LaunchConfig:
        return launch_config(
            batch,
            self.num_kv_heads,
            self.head_dim,
            self.num_sms,
            itemsize=self.itemsize,
            shared_bytes=self.shared_bytes,
        )

    # one layer of a step, inside a graph

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: AttentionLayer,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
    ) -> torch.Tensor:
        """One layer: [batch, num_q_heads * v_head_dim].

        Raises
        ------
        RuntimeError
            The layer passes no K/V to write in attention.
        """
        if k is None or v is None or not save_kv_cache:
            raise RuntimeError(
                f"longflow: layer {layer.layer_id} has no K/V of its own to write in attention, "
                f"so full rows cannot overwrite their victims"
            )
        step, layer_id = self._step, layer.layer_id
        assert step is not None
        out = attend_score_evict(
            q.view(-1, layer.tp_q_head_num, layer.qk_head_dim),
            k.view(-1, layer.tp_k_head_num, layer.qk_head_dim),
            v.view(-1, layer.tp_v_head_num, layer.v_head_dim),
            KVCache(
                self.token_to_kv_pool.get_key_buffer(layer_id),
                self.token_to_kv_pool.get_value_buffer(layer_id),
                scale_of(layer, "k"),
                scale_of(layer, "v"),
            ),
            DecodeStep(step.kv_indices, forward_batch.req_pool_indices, step.fields, step.config),
            self.row_states[self.layers.place(layer_id)],
            self.rule,
            self.workspace,
            scaling=layer.scaling,
            logit_cap=layer.logit_cap,
        )
        return out.view(-1, layer.tp_q_head_num * layer.v_head_dim)
