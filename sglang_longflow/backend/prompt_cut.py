# SPDX-License-Identifier: Apache-2.0
"""Which positions of over-long prompts each layer keeps, found while they are prefilled."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from longflow_kernels import pool_scores, prompt_mass
from longflow_kernels.compress_prompt.op import Prompt, pack_prompts, paged_prompt_mass
from sglang_longflow.backend.pool import load_kv, scale_of
from sglang_longflow.backend.sglang_types import AttentionLayer, KVPool
from sglang_longflow.core.contracts import PromptRow
from sglang_longflow.core.layers import KVLayers
from sglang_longflow.policies import Policy, PromptEnd

#: Attention that prompt tokens got, of as many layers as fit: then the layers' picks are made.
MASS_BYTES = 64 << 20


class _Window:
    """The batch's prompts whose policies look at their last `tokens` queries.

    `mass` [layers, packed.total] float32 is what these attended to in the layers that are not
    picked yet.
    """

    mass: torch.Tensor

    def __init__(self, tokens: int, rows: list[PromptRow], device: torch.device):
        self.tokens, self.rows = tokens, rows
        prompts = [
            Prompt(row.req_pool_idx, row.prompt_tokens - tokens, row.query_end - tokens)
            for row in rows
        ]
        self.packed = pack_prompts(prompts, device)


class PromptCut:
    """Fills `PromptRow.keep` of the rows that a prefill batch must cut.

    A layer adds up what the last queries attend to, in three kernels for all rows; the picks
    are made for many layers at once. With operations for each row and layer (they were eighteen)
    the GPU waits for their launches.

    Parameters
    ----------
    req_to_token : torch.Tensor
        [rows, row_slots] int32, SGLang's.
    kv_pool : MHATokenToKVPool
    layers : KVLayers
    fused : bool
        Whether to use the kernels, else plain PyTorch.
    """

    def __init__(self, req_to_token: torch.Tensor, kv_pool: KVPool, layers: KVLayers, fused: bool):
        self.req_to_token = req_to_token
        self.kv_pool = kv_pool
        self.layers = layers
        self.fused = fused
        self.begin(())

    def compile(self, num_q_heads: int, dtype: torch.dtype) -> None:
        """Compile at start-up; otherwise the first long prompt waits 2 s for it on an H100."""
        keys = self.kv_pool.get_key_buffer(self.layers.ids[0])
        window = Policy.prompt_window_tokens
        q = torch.zeros(window, num_q_heads, keys.shape[2], dtype=dtype, device=keys.device)
        prompts = pack_prompts([Prompt(0, 1, 0)], keys.device)
        paged_prompt_mass(q, window, keys, self.req_to_token, prompts, scaling=1.0)

    def begin(self, rows: Sequence[PromptRow]) -> None:
        """Before a batch: the rows whose prompts end in it and must be cut."""
        self.rows = rows
        by_window: dict[int, list[PromptRow]] = {}
        for row in rows:
            by_window.setdefault(row.budget.policy.prompt_window_tokens, []).append(row)
        device = self.req_to_token.device
        self.windows = [
            _Window(tokens, members, device) for tokens, members in by_window.items() if tokens
        ]
        total = sum(window.packed.total for window in self.windows)
        self.group = min(len(self.layers), max(1, MASS_BYTES // (4 * max(total, 1))))
        for window in self.windows:
            shape = self.group, window.packed.total
            window.mass = torch.empty(shape, dtype=torch.float32, device=device)
        self.first_layer = 0  # whose picks have not been made

    def record_layer(self, queries: torch.Tensor, layer: AttentionLayer) -> None:
        """After a layer's attention, its keys being in the pool.

        Parameters
        ----------
        queries : torch.Tensor
            [num_tokens, num_q_heads, head_dim], the batch's, after RoPE.
        layer : RadixAttention
        """
        place = self.layers.place(layer.layer_id)
        for window in self.windows:
            self._add_up(window, queries, layer, window.mass[place - self.first_layer])
        end = place + 1
        if end == len(self.layers) or end - self.first_layer == self.group:
            self._pick(end)

    def _add_up(
        self, window: _Window, queries: torch.Tensor, layer: AttentionLayer, out: torch.Tensor
    ) -> None:
        if self.fused:
            paged_prompt_mass(
                queries,
                window.tokens,
                self.kv_pool.get_key_buffer(layer.layer_id),
                self.req_to_token,
                window.packed,
                layer.scaling,
                layer.logit_cap,
                scale_of(layer, "k"),
                out,
            )
            return
        for row, place in zip(window.rows, window.packed.places, strict=True):
            earlier = self.req_to_token[row.req_pool_idx, : row.prompt_tokens - window.tokens]
            keys = load_kv(self.kv_pool, "k", earlier.to(torch.int64), layer)
            last = queries[row.query_end - window.tokens : row.query_end]
            out[place] = prompt_mass(last, keys, layer.scaling, layer.logit_cap)

    def _pick(self, end: int) -> None:
        """Fill `keep` of the layers from the first that is left up to `end`."""
        masses = {
            id(row): window.mass[: end - self.first_layer, place]
            for window in self.windows
            for row, place in zip(window.rows, window.packed.places, strict=True)
        }
        for row in self.rows:
            mass = masses.get(id(row))
            row.keep[self.first_layer : end] = row.budget.policy.prompt_keep(
                PromptEnd(
                    prompt_tokens=row.prompt_tokens,
                    keep_tokens=row.budget.tokens - 1,
                    scores=None if mass is None else pool_scores(mass),
                    device=row.keep.device,
                )
            )
        self.first_layer = end
