# SPDX-License-Identifier: Apache-2.0
"""Decode with SGLang's own attention; the score of full rows in plain PyTorch after it."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend

from longflow_kernels import attention_mass, removal_scores
from sglang_longflow.backend.policy_memory import LayerRows, PolicyMemory, StepRows
from sglang_longflow.backend.pool import load_kv
from sglang_longflow.backend.sglang_types import AttentionLayer, ForwardBatch, ModelRunner
from sglang_longflow.backend.victim_state import VictimState
from sglang_longflow.core.contracts import DecodeView, FullRow
from sglang_longflow.core.layers import KVLayers
from sglang_longflow.policies import FullRows, Policy
from sglang_longflow.policies.rows import NO_MEMORY, RowMemory


@dataclass
class FullGroup:
    """Full rows of a step that share policy and budget; indices are on the device.

    Attributes
    ----------
    policy : Policy
    budget_tokens : int
    batch_index : torch.Tensor
        [n] int64, place in the batch.
    step : StepRows
    """

    policy: Policy
    budget_tokens: int
    batch_index: torch.Tensor
    step: StepRows


@dataclass
class RedirectedStep:
    """A decode step of the batch, on the device, each full row writing over its victim."""

    forward_batch: ForwardBatch  # the inner backend's view: resident lengths, per-layer write slots
    out_cache_loc: torch.Tensor
    overwrite: torch.Tensor
    groups: list[FullGroup]


class ReferenceDecode:
    """Redirects a full row's write in each layer, and picks its next victim after attention."""

    l2_bytes = 0  # no L2 reservation: scores are used at once

    def __init__(
        self,
        inner: AttentionBackend,
        model_runner: ModelRunner,
        state: VictimState,
        memory: PolicyMemory,
        layers: KVLayers,
    ):
        self.inner = inner
        self.layers = layers
        self.state = state
        self.memory = memory
        self.req_to_token_pool = model_runner.req_to_token_pool
        self.token_to_kv_pool = model_runner.token_to_kv_pool
        self._step: RedirectedStep | None = None

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes

    def init_cuda_graph_state(self, max_bs: int) -> None:
        raise RuntimeError(
            "longflow: the reference decode runs without CUDA graphs; set --disable-cuda-graph, "
            "or --kv-decode-kernel triton"
        )

    def begin(self, forward_batch: ForwardBatch, view: DecodeView | None) -> None:
        """Prepare a step; `view` is None if no row of the batch is bounded."""
        if view is None:
            self._step = None
            self.inner.init_forward_metadata(forward_batch)
            return
        device = forward_batch.seq_lens.device
        host = torch.tensor([view.kv_lens, view.overwrite], dtype=torch.int64)
        kv_lens, overwrite = host.to(device, non_blocking=True)
        inner = copy.copy(forward_batch)
        inner.seq_lens = kv_lens.to(forward_batch.seq_lens.dtype)
        inner.seq_lens_cpu = host[0]
        inner.seq_lens_sum = sum(view.kv_lens)
        self._step = RedirectedStep(
            forward_batch=inner,
            out_cache_loc=forward_batch.out_cache_loc,
            overwrite=overwrite.bool(),
            groups=self._groups(forward_batch, view),
        )
        self.inner.init_forward_metadata(inner)

    def _groups(self, forward_batch: ForwardBatch, view: DecodeView) -> list[FullGroup]:
        by_kind: dict[tuple[Policy, int, bool], list[FullRow]] = defaultdict(list)
        for row in view.full_rows:
            policy, tokens = row.budget.policy, row.budget.tokens
            by_kind[policy, tokens, policy.is_due(tokens, row.overwrites)].append(row)
        device = forward_batch.seq_lens.device
        # On a CPU row by row: a row's sums must not depend on who shares its batch.
        size = 1 if device.type == "cpu" else len(view.full_rows) or 1
        groups = []
        for (policy, tokens, _), members in by_kind.items():
            for start in range(0, len(members), size):
                part = members[start : start + size]
                index = torch.tensor([row.batch_index for row in part]).to(
                    device, non_blocking=True
                )
                pool_index = forward_batch.req_pool_indices[index]
                slots = self.req_to_token_pool.req_to_token[pool_index, :tokens].to(torch.int64)
                positions = forward_batch.seq_lens[index].to(torch.int64) - 1
                step = StepRows(pool_index, slots, positions, part)
                groups.append(FullGroup(policy, tokens, index, step))
        return groups

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: AttentionLayer,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
    ) -> torch.Tensor:
        """One layer: SGLang's attention over resident tokens, then the next victims.

        Raises
        ------
        RuntimeError
            Full rows could not overwrite their victims: the layer wrote its K/V before attention.
        """
        step, place = self._step, self.layers.place(layer.layer_id)
        if k is not None:
            self.memory.record_queries(
                place,
                forward_batch.req_pool_indices,
                forward_batch.seq_lens.to(torch.int64) - 1,
                q.view(-1, layer.tp_q_head_num, layer.qk_head_dim),
            )
        if step is None or k is None:
            return self.inner.forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
        if not save_kv_cache:
            raise RuntimeError(
                f"longflow: layer {layer.layer_id} wrote its K/V before attention, "
                f"so full rows cannot overwrite their victims"
            )
        rows = forward_batch.req_pool_indices
        victims = self.state.next_slot[place, rows, 0].to(torch.int64)
        target = self.req_to_token_pool.req_to_token[rows, victims]
        step.forward_batch.out_cache_loc = torch.where(
            step.overwrite, target.to(step.out_cache_loc.dtype), step.out_cache_loc
        )
        out = self.inner.forward_decode(q, k, v, layer, step.forward_batch, save_kv_cache)
        queries = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        for group in step.groups:
            self._pick_victims(group, queries, layer)
        return out

    def _pick_victims(self, group: FullGroup, queries: torch.Tensor, layer: AttentionLayer) -> None:
        step, place = group.step, self.layers.place(layer.layer_id)
        overwrites = [row.overwrites for row in step.full_rows]

        def load(name: str) -> torch.Tensor:
            return load_kv(self.token_to_kv_pool, name, step.slots, layer)

        def compute_scores() -> torch.Tensor:
            q = queries[group.batch_index]
            return removal_scores(q, load("k"), load("v"), layer.scaling, layer.logit_cap)

        def compute_attention() -> torch.Tensor:
            q = queries[group.batch_index]
            return attention_mass(q, load("k"), layer.scaling, layer.logit_cap)

        recent = self.state.record_written(place, step.rows, group.budget_tokens, overwrites)
        written = self.state.next_slot[place, step.rows, 0].long()
        memory: RowMemory = NO_MEMORY
        if group.policy.needs.any:
            memory = LayerRows(self.memory, place, step, written)
        rows = FullRows(
            budget_tokens=group.budget_tokens,
            overwrites=overwrites,
            device=queries.device,
            compute_scores=compute_scores,
            compute_attention=compute_attention,
            recent=recent,
            prompt_tokens=[row.prompt_tokens for row in step.full_rows],
            load=load,
            memory=memory,
            scaling=layer.scaling,
            logit_cap=layer.logit_cap,
        )
        victims = group.policy.victims(rows).to(torch.int32)
        self.state.next_slot[place, step.rows, 0] = victims
