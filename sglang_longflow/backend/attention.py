"""LongFlowAttnBackend: any SGLang attention backend, with rows that stop growing."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend

from longflow_kernels import prompt_scores, removal_scores
from sglang_longflow import runtime
from sglang_longflow.backend.moves import carry_out
from sglang_longflow.contracts import DecodeView, PrefillView, PromptRow
from sglang_longflow.flow.decode import DecodeState
from sglang_longflow.policies import FullRows, Policy, PromptEnd


@dataclass
class FullGroup:
    """Full rows of a step that share policy and budget; indices are on the device.

    Attributes
    ----------
    policy : Policy
    budget_tokens : int
    batch_index, pool_index : torch.Tensor
        [n] int64 each: place in the batch, and req_pool_idx.
    slots : torch.Tensor
        [n, budget_tokens] int64 pool slots.
    overwrites : list of int
    """

    policy: Policy
    budget_tokens: int
    batch_index: torch.Tensor
    pool_index: torch.Tensor
    slots: torch.Tensor
    overwrites: list[int]


@dataclass
class DecodeStep:
    """A decode step of the batch, on the device."""

    forward_batch: object  # the inner backend's view: resident lengths, per-layer write slots
    out_cache_loc: torch.Tensor
    overwrite: torch.Tensor
    groups: list[FullGroup]


class LongFlowAttnBackend(AttentionBackend):
    """Wraps the backend the server would use and changes three things.

    - Lengths: attention sees the resident ``kv_len`` of each row; ``seq_lens`` stays logical.
    - Writes: in layer l, a full row's K/V goes to ``req_to_token[row, next_slot[l, row]]``.
    - Choice: after attention, each full row's next victim in that layer is picked, on the device.

    Batches without a bounded row pass through untouched.
    """

    def __init__(self, inner: AttentionBackend, model_runner):
        super().__init__()
        config = runtime.current().config
        self.inner = inner
        self.req_to_token_pool = model_runner.req_to_token_pool
        self.token_to_kv_pool = model_runner.token_to_kv_pool
        self.num_layers = model_runner.model_config.num_hidden_layers
        self.state = DecodeState(
            self.num_layers,
            self.req_to_token_pool.req_to_token.shape[0],
            config.kv_protect_recent_tokens,
            self.req_to_token_pool.req_to_token.device,
        )
        runtime.current().device_state_bytes = self.state.state_bytes
        self._decode: DecodeStep | None = None
        self._prefill: PrefillView | None = None

    def __getattr__(self, name):
        return getattr(self.__dict__["inner"], name)

    # What the base class defines, and the inner backend may override.
    @property
    def needs_cpu_seq_lens(self) -> bool:
        return True

    def support_triton(self):
        return self.inner.support_triton()

    def get_cuda_graph_seq_len_fill_value(self):
        return self.inner.get_cuda_graph_seq_len_fill_value()

    def get_indexer_metadata(self, layer_id, forward_batch):
        return self.inner.get_indexer_metadata(layer_id, forward_batch)

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int):
        raise RuntimeError("longflow: decode CUDA graphs are off with a KV budget")

    def init_forward_metadata(self, forward_batch):
        view = runtime.current().take_view(forward_batch.rids)
        self._prefill = view if isinstance(view, PrefillView) else None
        if isinstance(view, DecodeView):
            self._decode = self._begin_decode(forward_batch, view)
            self.inner.init_forward_metadata(self._decode.forward_batch)
        else:
            self._decode = None
            self.inner.init_forward_metadata(forward_batch)

    def init_forward_metadata_out_graph(self, forward_batch, in_capture: bool = False):
        self.init_forward_metadata(forward_batch)

    # decode

    def _begin_decode(self, forward_batch, view: DecodeView) -> DecodeStep:
        carry_out(view.moves, self.token_to_kv_pool, self.num_layers)
        device = forward_batch.seq_lens.device
        host = torch.tensor([view.kv_lens, view.overwrite], dtype=torch.int64)
        kv_lens, overwrite = host.to(device, non_blocking=True)
        if any(view.fresh):
            where = [i for i, is_fresh in enumerate(view.fresh) if is_fresh]
            index = torch.tensor(where).to(device, non_blocking=True)
            self.state.start_cut_rows(forward_batch.req_pool_indices[index], kv_lens[index])
        inner = copy.copy(forward_batch)
        inner.seq_lens = kv_lens.to(forward_batch.seq_lens.dtype)
        inner.seq_lens_cpu = host[0]
        inner.seq_lens_sum = sum(view.kv_lens)
        return DecodeStep(
            forward_batch=inner,
            out_cache_loc=forward_batch.out_cache_loc,
            overwrite=overwrite.bool(),
            groups=self._groups(forward_batch, view),
        )

    def _groups(self, forward_batch, view: DecodeView) -> list[FullGroup]:
        by_kind: dict[tuple[Policy, int], list[tuple[int, int]]] = defaultdict(list)
        for index, budget, overwrites in view.full_rows:
            by_kind[budget.policy, budget.tokens].append((index, overwrites))
        device = forward_batch.seq_lens.device
        # On a CPU row by row: a row's sums must not depend on who shares its batch.
        size = 1 if device.type == "cpu" else len(view.full_rows) or 1
        groups = []
        for (policy, tokens), members in by_kind.items():
            for start in range(0, len(members), size):
                part = members[start : start + size]
                batch_index = torch.tensor([i for i, _ in part]).to(device, non_blocking=True)
                pool_index = forward_batch.req_pool_indices[batch_index]
                slots = self.req_to_token_pool.req_to_token[pool_index, :tokens].to(torch.int64)
                groups.append(
                    FullGroup(policy, tokens, batch_index, pool_index, slots, [n for _, n in part])
                )
        return groups

    def forward_decode(self, q, k, v, layer, forward_batch, save_kv_cache=True, **kwargs):
        step = self._decode
        if step is None or k is None:
            return self.inner.forward_decode(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)
        if not save_kv_cache:
            raise RuntimeError(
                f"longflow: layer {layer.layer_id} wrote its K/V before attention, "
                f"so full rows cannot overwrite their victims"
            )
        victims = self.state.next_slot[layer.layer_id, forward_batch.req_pool_indices]
        target = self.req_to_token_pool.req_to_token[forward_batch.req_pool_indices, victims]
        step.forward_batch.out_cache_loc = torch.where(
            step.overwrite, target.to(step.out_cache_loc.dtype), step.out_cache_loc
        )
        out = self.inner.forward_decode(q, k, v, layer, step.forward_batch, save_kv_cache, **kwargs)
        queries = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        for group in step.groups:
            self._pick_victims(group, queries, layer)
        return out

    def _pick_victims(self, group: FullGroup, queries: torch.Tensor, layer) -> None:
        def compute_scores() -> torch.Tensor:
            keys = self._load(self.token_to_kv_pool.get_key_buffer, group.slots, layer, "k")
            values = self._load(self.token_to_kv_pool.get_value_buffer, group.slots, layer, "v")
            return removal_scores(
                queries[group.batch_index], keys, values, layer.scaling, layer.logit_cap
            )

        recent = self.state.note_written(
            layer.layer_id, group.pool_index, group.budget_tokens, group.overwrites
        )
        rows = FullRows(
            budget_tokens=group.budget_tokens,
            overwrites=group.overwrites,
            device=queries.device,
            compute_scores=compute_scores,
            recent=recent,
        )
        self.state.next_slot[layer.layer_id, group.pool_index] = group.policy.victims(rows)

    @staticmethod
    def _load(buffer_of, slots: torch.Tensor, layer, which: str) -> torch.Tensor:
        """K or V at `slots`, [..., num_kv_heads, head_dim]; float32 and scaled where it is fp8."""
        values = buffer_of(layer.layer_id)[slots]
        if values.dtype.itemsize > 1:
            return values
        scale = getattr(layer, f"{which}_scale_float", None)
        return values.float() * (1.0 if scale is None else scale)

    # prefill

    def forward_extend(self, q, k, v, layer, forward_batch, save_kv_cache=True, **kwargs):
        out = self.inner.forward_extend(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)
        if self._prefill is not None and k is not None:
            queries = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
            for row in self._prefill.rows:
                self._pick_prompt(row, queries, layer)
        return out

    def _pick_prompt(self, row: PromptRow, queries: torch.Tensor, layer) -> None:
        slots = self.req_to_token_pool.req_to_token[row.req_pool_idx, : row.prompt_tokens]

        def score_earlier(window: int) -> torch.Tensor:
            earlier = slots[: row.prompt_tokens - window].to(torch.int64)
            keys = self._load(self.token_to_kv_pool.get_key_buffer, earlier, layer, "k")
            last = queries[row.query_end - window : row.query_end]
            return prompt_scores(last, keys, layer.scaling, layer.logit_cap)

        row.keep[layer.layer_id] = row.budget.policy.prompt_keep(
            PromptEnd(
                prompt_tokens=row.prompt_tokens,
                keep_tokens=row.budget.tokens - 1,
                score_earlier=score_earlier,
                device=queries.device,
            )
        )
