# SPDX-License-Identifier: Apache-2.0
"""Run with a patched SGLang: attention wrappers, and data of a batch on its way to them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import sglang
import torch
from sglang.srt.layers.attention import attention_registry as registry
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import build_replay_fb_view
from sglang.srt.models import utils
from transformers import LlamaConfig


class Mine(AttentionBackend):
    supports_fused_set_kv_buffer = False

    def __init__(self, inner: Any):
        self.inner = inner


llama = LlamaConfig(num_hidden_layers=1)
runner: Any = SimpleNamespace(
    use_mla_backend=False,
    model_config=SimpleNamespace(
        hf_config=llama,
        hf_text_config=llama,
        quantization=None,
        linear_attn_registry_result=None,
    ),
)
stock = object()
assert registry.attn_backend_wrapper(runner, stock) is stock
registry.register_attention_wrapper(lambda runner, backend: Mine(backend))
wrapped = registry.attn_backend_wrapper(runner, stock)
assert isinstance(wrapped, Mine) and wrapped.inner is stock

# The fused write: a backend may refuse it, and by default nothing changes.
pool = SimpleNamespace(dtype=torch.bfloat16)
batch: Any = SimpleNamespace(dcp_kv_mask=None)
for backend, fused in ((AttentionBackend, True), (Mine, False)):
    with (
        mock.patch.object(utils, "_is_cuda", True),
        mock.patch.object(utils, "get_token_to_kv_pool", return_value=pool),
        mock.patch.object(utils, "is_cp_active", return_value=False),
        mock.patch.object(utils, "get_attn_backend", return_value=backend),
    ):
        assert utils.enable_fused_set_kv_buffer(batch) is fused

# A replay of a CUDA graph sees the data of the batch that it was given.
rows = torch.zeros(1, dtype=torch.int64)
forward = ForwardBatch(
    forward_mode=ForwardMode.DECODE,
    batch_size=1,
    input_ids=rows,
    req_pool_indices=rows,
    seq_lens=rows,
    out_cache_loc=rows,
    seq_lens_sum=0,
    plugin_data={"kv": ["row"]},
)
view = build_replay_fb_view(
    forward_batch=forward,
    buffers=mock.MagicMock(),
    bs=1,
    raw_bs=1,
    num_tokens=1,
    global_num_tokens_cpu=None,
    seq_len_fill_value=1,
    capture_forward_mode=ForwardMode.DECODE,
    is_encoder_decoder=False,
)
assert view.plugin_data == {"kv": ["row"]}

print("checked", sglang.__file__)
