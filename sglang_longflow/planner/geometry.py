# SPDX-License-Identifier: Apache-2.0
"""Model geometry read from ``config.json``: parameters, and KV bytes per token."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, replace
from typing import Any

from sglang_longflow.errors import LongFlowError
from sglang_longflow.planner.hybrid import hybrid_parameters, ties_embeddings
from sglang_longflow.settings.context import context_tokens
from sglang_longflow.settings.hybrid_models import HybridLayers, hybrid_layers, is_hybrid
from sglang_longflow.settings.model_source import Missing, look_up
from sglang_longflow.settings.models import untried
from sglang_longflow.settings.refused_models import language_model, model_conflict

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
KV_DTYPES = ("auto", "fp8_e4m3")
#: What no model exceeds; a config may say anything.
_MOST_LAYERS, _MOST = 10_000, 2**31 - 1
_TIED_BY_DEFAULT = ("gemma", "cohere")


class PlanError(LongFlowError, ValueError):
    """Bad planner input, or a model whose cache the plugin cannot bound."""


@dataclass(frozen=True)
class ModelGeometry:
    """Shape of a dense or mixture-of-experts decoder with ordinary K and V heads; in elements.

    ``shared_intermediate`` is the width of all shared experts of a layer together,
    ``dense_layers`` the layers with an ordinary MLP in a mixture-of-experts model. ``folder`` is
    where safetensors files are looked for; ``opaque_field`` names the config field because of
    which the geometry alone does not give the weights. ``source`` says where the config was found,
    ``passed_over`` why it is a built-in one; ``stored_dtype`` is that of the checkpoint.
    ``context_tokens`` is the longest context, as far as the config tells. ``hybrid`` tells the
    layers with keys and values from those with a state, ``parameters`` is then their number, and
    ``refused`` why a server does not take such a model; ``untried`` is what there is to say of one
    whose kind was never run with a budget.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    mlp_bias: bool = False
    experts: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    dense_layers: int = 0
    folder: str | None = None
    opaque_field: str = ""
    source: str = ""
    passed_over: str = ""
    revision: str | None = None
    stored_dtype: str | None = None
    context_tokens: int | None = None
    hybrid: HybridLayers | None = None
    parameters: int | None = None
    refused: str = ""
    untried: str = ""

    @property
    def kv_layers(self) -> int:
        """Layers with keys and values."""
        return self.layers if self.hybrid is None else len(self.hybrid.attention)

    @property
    def named(self) -> bool:
        """Whether the hub knows the model by its name."""
        return self.source in ("cache", "hub")


def _size(config: dict[str, Any], key: str, default: int | None = None, most: int = _MOST) -> int:
    """Integer field of a config, 1 to `most`; ``default`` stands in for missing or null."""
    value = config.get(key)
    if value is None:
        if default is None:
            raise PlanError(f"config.json field {key} is missing; it must be a positive integer")
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PlanError(f"config.json field {key}={reprlib.repr(value)} must be a positive integer")
    if value > most:
        raise PlanError(f"config.json field {key}={reprlib.repr(value)} must be at most {most:,}")
    return value


def _count(config: dict[str, Any], *keys: str) -> int:
    """First of the keys that is present and not null or 0, else 0."""
    return next((_size(config, key) for key in keys if config.get(key)), 0)


def _text(config: dict[str, Any], key: str) -> str | None:
    value = config.get(key)
    return value if isinstance(value, str) else None


def geometry_from(config: dict[str, Any], name: str, folder: str | None) -> ModelGeometry:
    """Geometry of a model from the fields of its ``config.json``.

    Raises
    ------
    PlanError
        A field is missing or wrong, or the attention kind is one that the plugin refuses. A model
        with recurrent layers is planned for, and says itself that a server refuses it.
    """
    conflict = model_conflict(config)
    if is_hybrid(language_model(config)):
        return _hybrid_geometry(config, name, folder, conflict or "")
    if conflict:
        raise PlanError(f"config.json: {conflict}; choose another --model")
    untried_kind = untried(config) or ""
    opaque = "quantization_config" if config.get("quantization_config") else ""
    opaque = opaque or ("vision_config" if config.get("vision_config") else "")
    text = config.get("text_config")
    if isinstance(text, dict):
        config = {"tie_word_embeddings": config.get("tie_word_embeddings"), **text}
        opaque = opaque or "text_config"
    model_type = str(config.get("model_type", ""))
    layers = _size(config, "num_hidden_layers", most=_MOST_LAYERS)
    hidden = _size(config, "hidden_size")
    heads = _size(config, "num_attention_heads")
    kv_heads = _size(config, "num_key_value_heads", heads)
    if config.get("head_dim") is None and hidden % heads:
        raise PlanError(f"config.json field head_dim is missing and {heads=} divides not {hidden=}")
    if heads % kv_heads:
        raise PlanError(f"config.json field num_key_value_heads={kv_heads} must divide {heads=}")
    experts = _count(config, "num_experts", "num_local_experts", "n_routed_experts")
    expert_width = _count(config, "moe_intermediate_size")
    width = _size(config, "intermediate_size", expert_width or None)
    expert_width = expert_width or width
    shared = _count(config, "shared_expert_intermediate_size")
    shared = shared or _count(config, "n_shared_experts") * expert_width
    step, skip = _count(config, "decoder_sparse_step") or 1, config.get("mlp_only_layers") or ()
    first = _count(config, "first_k_dense_replace")
    dense = sum(1 for i in range(layers) if i < first or i in skip or (i + 1) % step)
    qwen2, bias = model_type.startswith("qwen2"), bool(config.get("attention_bias"))
    tied = config.get("tie_word_embeddings")
    return ModelGeometry(
        name, layers, hidden, width, heads, kv_heads,
        head_dim=_size(config, "head_dim", hidden // heads or 1),
        vocab=_size(config, "vocab_size"),
        tied=model_type.startswith(_TIED_BY_DEFAULT) if tied is None else bool(tied),
        qkv_bias=bias or (qwen2 and bool(config.get("qkv_bias", True))),
        o_bias=bias and not qwen2 and model_type != "glm4_moe",
        qk_norm=model_type.startswith("qwen3") or bool(config.get("use_qk_norm")),
        mlp_bias=bool(config.get("mlp_bias")),
        experts=experts,
        expert_intermediate=expert_width if experts else 0,
        shared_intermediate=shared if experts else 0,
        dense_layers=dense if experts else layers,
        folder=folder,
        opaque_field=opaque,
        context_tokens=context_tokens(config),
        untried=untried_kind,
        stored_dtype=_text(config, "dtype") or _text(config, "torch_dtype"),
    )  # fmt: skip


def _hybrid_geometry(
    config: dict[str, Any], name: str, folder: str | None, refused: str
) -> ModelGeometry:
    """Geometry of a model with recurrent layers; `refused` is why a server does not take it."""
    opaque = "quantization_config" if config.get("quantization_config") else ""
    if isinstance(config.get("text_config"), dict):
        opaque = opaque or "text_config"
    text = {"tie_word_embeddings": config.get("tie_word_embeddings"), **language_model(config)}
    try:
        hybrid = hybrid_layers(text)
    except ValueError as error:
        raise PlanError(f"config.json {error}") from error
    hidden, heads = _size(text, "hidden_size"), _size(text, "num_attention_heads")
    kv_heads = _size(text, "num_key_value_heads", heads)
    vocab, head_dim = _size(text, "vocab_size"), _size(text, "head_dim", hidden // heads or 1)
    if heads % kv_heads:
        raise PlanError(f"config.json field num_key_value_heads={kv_heads} must divide {heads=}")
    if hybrid is None or not hybrid.attention:  # one kind alone, and the fields of the other
        kind = f"model_type={text.get('model_type')!r}"
        why = refused or f"{kind}: no layer has keys and values"
        raise PlanError(f"config.json: {why}; choose another --model")
    return ModelGeometry(
        name, len(hybrid.kinds), hidden, _size(text, "intermediate_size", hidden), heads, kv_heads,
        head_dim=head_dim,
        vocab=vocab,
        tied=ties_embeddings(text),
        experts=_count(text, "num_experts", "num_local_experts", "n_routed_experts"),
        folder=folder,
        opaque_field=opaque,
        context_tokens=context_tokens(text),
        stored_dtype=_text(text, "dtype") or _text(text, "torch_dtype"),
        hybrid=hybrid,
        parameters=hybrid_parameters(text, hybrid),
        refused=refused,
    )  # fmt: skip


def load_geometry(model: str, revision: str | None = None, *, hub: bool = True) -> ModelGeometry:
    """Geometry of a model: a folder, a config.json, or a name of the hub (`model_source`).

    Without `hub` the hub is not asked.

    Returns
    -------
    ModelGeometry
        Sizes in elements; layers and heads as counts.

    Raises
    ------
    PlanError
        Unknown model, unreadable config, or an attention kind the plugin refuses.
    """
    found = look_up(model, revision, hub=hub)
    if isinstance(found, Missing):
        raise PlanError(f"--model {found}")
    try:
        geometry = geometry_from(found.config, found.name, found.folder)
        passed_over = found.passed_over.briefly if found.passed_over else ""
        return replace(geometry, source=found.source, passed_over=passed_over, revision=revision)
    except TypeError as error:  # such as a number for layer_types
        raise PlanError(
            f"--model {model}: what the {found.source} has is not a model config: {error}"
        ) from error


def parameter_count(geom: ModelGeometry) -> int:
    """Parameters (elements): embeddings, attention, gated MLP or experts, norms."""
    if geom.parameters is not None:
        return geom.parameters
    h, q_size, kv_size = geom.hidden, geom.heads * geom.head_dim, geom.kv_heads * geom.head_dim
    attention = 2 * h * q_size + 2 * h * kv_size
    attention += (q_size + 2 * kv_size) * geom.qkv_bias + h * geom.o_bias
    attention += 2 * geom.head_dim * geom.qk_norm
    dense = 3 * h * geom.intermediate + (2 * geom.intermediate + h) * geom.mlp_bias
    sparse = geom.experts * (3 * h * geom.expert_intermediate + h)  # + h: one router row an expert
    sparse += 3 * h * geom.shared_intermediate
    mlps = dense * geom.dense_layers + sparse * (geom.layers - geom.dense_layers)
    embeddings = geom.vocab * h * (1 if geom.tied else 2)
    return embeddings + geom.layers * (attention + 2 * h) + mlps + h


def kv_bytes_per_token(
    geom: ModelGeometry, tp: int = 1, kv_cache_dtype: str = "auto", dtype: str = "bfloat16"
) -> int:
    """KV-cache bytes per token on each GPU; only layers with keys and values count.

    ``layers x 2 x max(1, kv_heads / tp) x head_dim x bytes per element``.

    Parameters
    ----------
    geom : ModelGeometry
    tp : int
        Tensor-parallel GPUs.
    kv_cache_dtype, dtype : str
        ``auto`` (stored at ``dtype``) or ``fp8_e4m3`` (1 byte per element).

    Returns
    -------
    int
        Bytes per token and GPU.

    Raises
    ------
    PlanError
        ``tp`` is not positive, does not divide the heads, or fits the KV heads neither way.
    """
    if tp < 1:
        raise PlanError(f"--tp {tp} must be at least 1")
    if geom.heads % tp:
        raise PlanError(f"--tp {tp} must divide the {geom.heads} attention heads of {geom.name}")
    if geom.kv_heads % tp and tp % geom.kv_heads:
        raise PlanError(
            f"--tp {tp} must divide or be a multiple of the {geom.kv_heads} KV heads of {geom.name}"
        )
    element = 1 if kv_cache_dtype == "fp8_e4m3" else DTYPE_BYTES[dtype]
    return geom.kv_layers * 2 * max(1, geom.kv_heads // tp) * geom.head_dim * element


def state_bytes_per_request(geom: ModelGeometry, tp: int = 1) -> int:
    """Bytes of a request's recurrent states on each GPU, one slot of SGLang's pool; 0 without any.

    Raises
    ------
    PlanError
        The ranks cannot share the heads of a recurrent layer.
    """
    if geom.hybrid is None:
        return 0
    try:
        return geom.hybrid.state_bytes(tp)
    except ValueError as error:
        raise PlanError(f"--tp {tp}: {error} of {geom.name}") from error
