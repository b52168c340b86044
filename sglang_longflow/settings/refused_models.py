# SPDX-License-Identifier: Apache-2.0
"""Models that cannot have a KV budget, told from their ``config.json``: the one list, no torch.

The planner, `longflow doctor`, `longflow serve` and the server ask it. What only SGLang knows of a
model (`compatibility.refuse_model`) is refused by the server alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sglang_longflow.settings.hybrid_models import RECURRENT, hybrid_layers

#: What is done about it, behind every conflict of a server.
FIX = "drop --kv-budget or choose another --model-path"
#: Fields of a model's outer config that name an encoder of something else than text.
_OTHER_MEDIA = ("vision_config", "audio_config", "mm_vision_tower", "thinker_config")
#: Models of images that ran with a budget (docs/models.md), by the model_type of the whole.
IMAGES = ("qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl", "qwen3_5", "qwen3_5_moe")
#: How fields begin that describe layers with a state in place of keys and values.
_STATE_FIELDS = ("mamba_", "ssm_", "linear_", "hybrid_override_pattern")
_STATE_MODELS = ("mamba", "rwkv", "recurrent")
_FULL = ("full_attention", "attention")
#: Layers of hybrid models that keep no keys and values, beside those with a recurrent state.
_NO_STATE = ("mlp", "moe")
_WINDOWS = ("sliding_window", "sliding_window_size", "window_size")


def language_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that describe the language model."""
    text = config.get("text_config")
    found = text if isinstance(text, Mapping) else config
    return {key: value for key, value in found.items() if key not in _OTHER_MEDIA}


def media_conflict(kind: str) -> str:
    """Why a model that takes more than text cannot have a KV budget; `kind` is a ``model_type``."""
    return (
        f"model_type={kind!r}: models that take images, audio or video are not tested with a "
        f"KV budget"
    )


def model_conflict(config: Mapping[str, Any]) -> str | None:
    """Why a model cannot have a KV budget, in words without a fix; None if it can.

    Parameters
    ----------
    config : mapping
        A ``config.json``, or the same fields of a Transformers config. ``text_config`` is looked
        into.
    """
    text = language_model(config)
    kind = text.get("model_type", "?")
    takes_media = any(config.get(field) for field in _OTHER_MEDIA)
    if takes_media and config.get("model_type") not in IMAGES:
        return media_conflict(str(kind))
    if text.get("kv_lora_rank"):
        return f"model_type={kind!r}: MLA attention is not supported with a KV budget"
    if config.get("is_encoder_decoder") or text.get("is_encoder_decoder"):
        return f"model_type={kind!r}: encoder-decoder models are not supported with a KV budget"
    if text.get("dual_chunk_attention_config"):
        return f"model_type={kind!r}: dual chunk attention is not supported with a KV budget"
    kinds = _layer_kinds(text)
    try:
        hybrid = hybrid_layers(text)
    except ValueError as error:
        return f"model_type={kind!r}: which layers keep keys and values cannot be told: {error}"
    if hybrid is not None and not hybrid.attention:
        return f"model_type={kind!r}: no layer keeps keys and values: a budget bounds nothing"
    without_kv = () if hybrid is None else (*RECURRENT, *_NO_STATE)
    other = sorted(set(kinds) - {*_FULL, *without_kv})
    if other:
        return f"model_type={kind!r}: layers of type {other} are not supported with a KV budget"
    if hybrid is not None:
        return None
    # Also where every layer is said to be full attention: SGLang makes a pool of states by them.
    if (field := _state_field(text)) is not None:
        return f"model_type={kind!r}: linear-attention layers ({field}) are not supported"
    if kinds:
        return None  # a window or a chunk in the same config is then no layer's
    if text.get("attention_chunk_size"):
        return (
            f"model_type={kind!r}: attention in chunks of {text['attention_chunk_size']} is not "
            f"supported with a KV budget"
        )
    if (window := _sliding_window(text)) is not None:
        return (
            f"model_type={kind!r}: sliding-window layers (window {window}) are not "
            f"supported with a KV budget"
        )
    return None


def _layer_kinds(text: Mapping[str, Any]) -> tuple[str, ...]:
    kinds = text.get("layer_types") or text.get("layers_block_type") or ()
    return (kinds,) if isinstance(kinds, str) else tuple(map(str, kinds))


def _state_field(text: Mapping[str, Any]) -> str | None:
    """The field that tells of layers without keys and values; None if there is none."""
    if any(word in str(text.get("model_type", "")) for word in _STATE_MODELS):
        return "model_type"
    by_layer = text.get("attn_type_list")  # of MiniMax: 1 is softmax attention
    if isinstance(by_layer, Sequence) and any(one != 1 for one in by_layer):
        return "attn_type_list"
    return next((key for key, v in text.items() if v and key.startswith(_STATE_FIELDS)), None)


def _sliding_window(text: Mapping[str, Any]) -> int | None:
    """The window in tokens, if it can cut anything.

    Qwen2 configs carry one that ``use_sliding_window`` turns off; one as long as the longest
    context never cuts anything.
    """
    window = next((text[key] for key in _WINDOWS if text.get(key)), None)
    if not isinstance(window, int) or window <= 0 or not text.get("use_sliding_window", True):
        return None
    longest = text.get("max_position_embeddings") or 0
    return None if 0 < longest <= window else window
