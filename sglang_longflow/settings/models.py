# SPDX-License-Identifier: Apache-2.0
"""Which models were run with a KV budget, and well-known ones that are refused. Literal, no torch.

`scripts/models_table.py` makes the tables of docs/models.md from it; plan, doctor and the server
say it of a model that was not run. What is refused is decided
elsewhere, from a model's configuration; a test asks about each example here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sglang_longflow.settings.refused_models import IMAGES, language_model


class Weights(Enum):
    """Where a tested model's weights come from."""

    TRAINED = "trained"
    RANDOM = "random"


class Evidence(Enum):
    """How a model was tested; docs/models.md says what each means."""

    CPU_TOKENS = "tokens, CPU"
    CPU_SERVER = "servers, CPU"
    GPU_TOKENS = "tokens, GPU"
    GPU_SERVER = "servers, GPU"
    GPU_THROUGHPUT = "throughput, GPU"
    ANSWERS = "answers, GPU"


@dataclass(frozen=True)
class TriedModel:
    """A model that was run with a budget.

    ``architecture`` is the entry of ``architectures`` in its config.json; ``query_heads`` and
    ``kv_heads`` are counts, ``head_size`` is in elements. ``evidence`` names the test or page of
    each kind, as a path from the repository's root.
    """

    architecture: str
    name: str
    query_heads: int
    kv_heads: int
    head_size: int
    weights: Weights
    evidence: Mapping[Evidence, str]

    @property
    def attention(self) -> str:
        """MHA, GQA or MQA, by the heads that share K and V."""
        return attention_kind(self.query_heads, self.kv_heads)


def attention_kind(query_heads: int, kv_heads: int) -> str:
    """MHA: a KV head per query head. MQA: one for all. GQA: in between."""
    if query_heads == kv_heads:
        return "MHA"
    return "MQA" if kv_heads == 1 else "GQA"


_TOKENS = "tests/e2e/test_tokens.py"
_GPU = "tests/e2e/test_gpu.py"
_RESULTS = "docs/results.md"
_EXPERTS = {Evidence.CPU_TOKENS: "tests/e2e/test_expert_tokens.py"}
_IMAGES = {Evidence.CPU_TOKENS: "tests/e2e/test_image_tokens.py"}
_HYBRID = {Evidence.CPU_TOKENS: "tests/e2e/test_hybrid_tokens.py"}
TRIED: tuple[TriedModel, ...] = (
    TriedModel(
        "LlamaForCausalLM", "tiny Llama", 4, 2, 64, Weights.RANDOM,
        {
            Evidence.CPU_TOKENS: _TOKENS,
            Evidence.GPU_TOKENS: _GPU,
            Evidence.GPU_SERVER: _GPU,
        },
    ),
    TriedModel(
        "LlamaForCausalLM", "SmolLM2-135M-Instruct", 9, 3, 64, Weights.TRAINED,
        {Evidence.CPU_SERVER: "tests/e2e/test_demo.py"},
    ),
    TriedModel(
        "MistralForCausalLM", "tiny Mistral without a window", 4, 1, 64, Weights.RANDOM,
        {Evidence.CPU_TOKENS: _TOKENS},
    ),
    TriedModel(
        "Qwen2ForCausalLM", "tiny Qwen2", 4, 4, 64, Weights.RANDOM,
        {Evidence.CPU_TOKENS: _TOKENS},
    ),
    TriedModel(
        "Qwen2ForCausalLM", "Qwen2.5-Math-7B's shape", 28, 4, 128, Weights.RANDOM,
        {Evidence.GPU_THROUGHPUT: _RESULTS},
    ),
    TriedModel(
        "Qwen3ForCausalLM", "tiny Qwen3", 4, 2, 64, Weights.RANDOM,
        {Evidence.CPU_TOKENS: _TOKENS},
    ),
    TriedModel(
        "Qwen3ForCausalLM", "the reasoner of this package", 4, 2, 64, Weights.TRAINED,
        {Evidence.ANSWERS: "docs/accuracy.md", Evidence.CPU_SERVER: "tests/e2e/test_eval.py"},
    ),
    TriedModel(
        "Qwen3ForCausalLM", "Qwen3-1.7B's shape", 16, 8, 128, Weights.RANDOM,
        {Evidence.GPU_THROUGHPUT: _RESULTS},
    ),
    TriedModel(
        "Qwen3ForCausalLM", "Qwen3-8B's shape", 32, 8, 128, Weights.RANDOM,
        {Evidence.GPU_THROUGHPUT: _RESULTS},
    ),
    TriedModel(
        "Qwen3MoeForCausalLM", "tiny mixture of experts", 4, 2, 64, Weights.RANDOM,
        {**_EXPERTS, Evidence.GPU_SERVER: _GPU},
    ),
    TriedModel("MiniMaxM2ForCausalLM", "tiny MiniMax-M2", 12, 2, 64, Weights.RANDOM, _EXPERTS),
    TriedModel("Glm4MoeForCausalLM", "tiny GLM-4.5-Air", 12, 1, 64, Weights.RANDOM, _EXPERTS),
    TriedModel("Glm4MoeForCausalLM", "tiny GLM-4.5 to 4.7", 24, 2, 64, Weights.RANDOM, _EXPERTS),
    # They take images.
    TriedModel(
        "Qwen3VLForConditionalGeneration", "tiny Qwen3-VL", 4, 2, 64, Weights.RANDOM, _IMAGES
    ),
    TriedModel(
        "Qwen3VLMoeForConditionalGeneration", "tiny Qwen3-VL of experts", 4, 2, 64, Weights.RANDOM,
        _IMAGES,
    ),
    TriedModel(
        "Qwen2_5_VLForConditionalGeneration", "tiny Qwen2.5-VL", 4, 2, 64, Weights.RANDOM, _IMAGES
    ),
    TriedModel(
        "Qwen3_5ForConditionalGeneration", "tiny Qwen3.5 with images", 12, 2, 256, Weights.RANDOM,
        _IMAGES,
    ),
    TriedModel(
        "Qwen3_5MoeForConditionalGeneration", "tiny Qwen3.5 of experts with images", 8, 1, 256,
        Weights.RANDOM, _IMAGES,
    ),
    # Only some of their layers have keys and values.
    TriedModel("Qwen3NextForCausalLM", "tiny Qwen3-Next", 16, 2, 256, Weights.RANDOM, _HYBRID),
    TriedModel("Qwen3_5ForCausalLM", "tiny Qwen3.5", 12, 2, 256, Weights.RANDOM, _HYBRID),
    TriedModel(
        "Qwen3_5MoeForCausalLM", "tiny Qwen3.5 of experts", 8, 1, 256, Weights.RANDOM, _HYBRID
    ),
    TriedModel("NemotronHForCausalLM", "tiny Nemotron-H", 32, 2, 64, Weights.RANDOM, _HYBRID),
    TriedModel("FalconH1ForCausalLM", "tiny Falcon-H1", 8, 2, 128, Weights.RANDOM, _HYBRID),
    TriedModel(
        "GraniteMoeHybridForCausalLM", "tiny Granite 4", 6, 1, 64, Weights.RANDOM, _HYBRID
    ),
    TriedModel("Lfm2ForCausalLM", "tiny LFM2", 4, 1, 64, Weights.RANDOM, _HYBRID),
    TriedModel("Lfm2MoeForCausalLM", "tiny LFM2 of experts", 4, 1, 64, Weights.RANDOM, _HYBRID),
)  # fmt: skip

#: ``model_type`` of the tried ones, of the whole or of its language model.
TRIED_TYPES = frozenset(
    (
        *("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "minimax_m2", "glm4_moe"),
        *("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "nemotron_h", "falcon_h1"),
        *("granitemoehybrid", "lfm2", "lfm2_moe"),
        *IMAGES,
    )
)


def untried(config: Mapping[str, Any]) -> str | None:
    """A word on a model that may have a budget and was never run with one; None if it was.

    Parameters
    ----------
    config : mapping
        A ``config.json``, or the same fields of a Transformers config.
    """
    kinds = (language_model(config).get("model_type"), config.get("model_type"))
    if not TRIED_TYPES.isdisjoint(kinds):
        return None
    return (
        f"model_type={kinds[0]!r}: its attention is ordinary, but no model of this kind has been "
        f"run with a KV budget; compare some answers with full KV first"
    )


#: Fields of config.json that decide, of models whose users may ask.
REFUSED: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("DeepSeek-V2, V3, R1; Kimi K2", {"model_type": "deepseek_v3", "kv_lora_rank": 512}),
    (
        "gpt-oss",
        {"model_type": "gpt_oss", "layer_types": ["sliding_attention", "full_attention"]},
    ),
    (
        "Gemma 2 and 3",
        {"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"]},
    ),
    (
        "Llama 4",
        {"model_type": "llama4_text", "layer_types": ["chunked_attention", "full_attention"]},
    ),
    ("Mistral 7B v0.1", {"model_type": "mistral", "sliding_window": 4096}),
    ("Mamba, Falcon-Mamba", {"model_type": "falcon_mamba"}),
    ("T5, Whisper", {"model_type": "t5", "is_encoder_decoder": True}),
    (
        "Qwen2.5-1M",
        {"model_type": "qwen2", "dual_chunk_attention_config": {"chunk_size": 262144}},
    ),
    (
        "LLaVA and other vision or audio models that are not listed above",
        {"model_type": "llava", "vision_config": {"model_type": "clip_vision_model"}},
    ),
)
