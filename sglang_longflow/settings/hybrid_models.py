# SPDX-License-Identifier: Apache-2.0
"""Models of which only some layers have keys and values, told from their ``config.json``. No torch.

The others keep a state of a fixed size for each request: of a recurrence (Mamba2, gated delta rule)
and of the convolution before it, or of a convolution alone. Which layers are which, and how large a
state is, follow SGLang 0.5.23: ``configs/{qwen3_next,qwen3_5,nemotron_h,falcon_h1}.py``,
``configs/{granitemoehybrid,lfm2,lfm2_moe,mamba_utils}.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: By model_type, of the language model: how its recurrent layers work.
_DELTA, _MAMBA2, _PARALLEL, _CONVOLUTION = "delta rule", "Mamba2", "Mamba2 beside", "convolution"
_KINDS = {
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), _DELTA),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), _DELTA),  # SGLang's name of both in a dict
    **dict.fromkeys(("nemotron_h", "granitemoehybrid"), _MAMBA2),
    "falcon_h1": _PARALLEL,
    **dict.fromkeys(("lfm2", "lfm2_moe"), _CONVOLUTION),
}
_FULL = ("full_attention", "attention")
#: Names of layers that keep a state.
RECURRENT = ("linear_attention", "mamba", "conv", "short_conv")
_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
#: Bytes of an element of a convolution's state: bf16, whatever the model's dtype is, unless
#: SGLANG_MAMBA_CONV_DTYPE says otherwise.
_CONV_BYTES = 2
_STATE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class StateShape:
    """The state of one recurrent layer, of all tensor-parallel ranks together; in elements.

    ``channels`` go through the convolution beside the keys and queries of ``groups`` groups;
    ``state_size`` is 0 where there is a convolution alone. ``element_bytes`` is of the recurrence.
    """

    channels: int
    groups: int
    heads: int
    head_size: int
    state_size: int
    kernel: int
    element_bytes: int = 4

    def bytes_per_rank(self, tp: int) -> int:
        """Bytes of the state on each of `tp` ranks.

        Raises
        ------
        ValueError
            The heads cannot be shared out.
        """
        if self.channels % tp or (self.state_size and self.heads % tp):
            raise ValueError(f"{tp} ranks cannot share {self.heads} heads of a recurrent layer")
        # A group that several ranks need is on each of them.
        groups = self.groups if self.groups % tp == 0 else tp
        convolved = (self.channels + 2 * groups * self.state_size) // tp
        recurrence = self.heads // tp * self.head_size * self.state_size if self.state_size else 0
        return convolved * (self.kernel - 1) * _CONV_BYTES + recurrence * self.element_bytes


@dataclass(frozen=True)
class HybridLayers:
    """Kinds of the layers in the model's order, and the state of each recurrent one.

    A layer may be of both kinds (Falcon-H1) or of neither (Nemotron-H's experts).
    """

    kinds: tuple[str, ...]
    attention: tuple[int, ...]
    recurrent: tuple[int, ...]
    state: StateShape

    @property
    def slots_per_request(self) -> int:
        """Slots that SGLang sets aside for each request, with a radix cache and its defaults.

        Its own and what prefixes in the tree keep (``_calculate_mamba_ratio``), and two to keep
        states in while it decodes under overlap scheduling, which LFM2 goes without.
        """
        return 5 if self.state.state_size else 3

    def state_bytes(self, tp: int = 1) -> int:
        """Bytes of all states of one request on each rank: one slot of SGLang's pool."""
        return len(self.recurrent) * self.state.bytes_per_rank(tp)


def is_hybrid(text: Mapping[str, Any]) -> bool:
    """Whether a language model's fields are of a kind that this module knows."""
    return str(text.get("model_type")) in _KINDS


def hybrid_layers(text: Mapping[str, Any]) -> HybridLayers | None:
    """The layers of a hybrid model; None for any other.

    Parameters
    ----------
    text : mapping
        Fields of a ``config.json`` that describe the language model.

    Raises
    ------
    ValueError
        A field is missing or makes no sense; the text names it.
    """
    if not is_hybrid(text):
        return None
    how = _KINDS[str(text["model_type"])]
    kinds = _layer_kinds(text, how)
    attention = tuple(i for i, kind in enumerate(kinds) if kind in _FULL)
    recurrent = tuple(i for i, kind in enumerate(kinds) if kind in RECURRENT)
    if how == _PARALLEL:
        attention = recurrent = tuple(range(len(kinds)))
    if not recurrent:
        return None  # such as Granite 4's models without Mamba: ordinary attention
    return HybridLayers(kinds, attention, recurrent, _state_shape(text, how))


def _number(text: Mapping[str, Any], *names: str) -> int:
    """The first of the fields that is there, a positive integer."""
    for name in names:
        value = text.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"field {name}={value!r} must be a positive integer")
            return value
    raise ValueError(f"field {names[0]} is missing; it must be a positive integer")


def _layer_kinds(text: Mapping[str, Any], how: str) -> tuple[str, ...]:
    if isinstance(pattern := text.get("hybrid_override_pattern"), str):
        unknown = set(pattern) - set(_LETTERS)
        if unknown:
            raise ValueError(f"field hybrid_override_pattern has layers of {sorted(unknown)}")
        return tuple(_LETTERS[letter] for letter in pattern)
    count = None
    if text.get("num_hidden_layers") is not None or how != _MAMBA2:
        count = _number(text, "num_hidden_layers")
    if how == _PARALLEL:
        return ("hybrid",) * (count or 0)
    listed = text.get("layer_types") or text.get("layers_block_type")
    interval = text.get("full_attention_interval")
    if how == _DELTA and count and (interval is not None or not listed):
        # SGLang reads it alone; without one, both it and Transformers take 4.
        every = 4 if interval is None else _number(text, "full_attention_interval")
        return tuple(
            "full_attention" if (i + 1) % every == 0 else "linear_attention" for i in range(count)
        )
    if not isinstance(listed, list | tuple) or not all(isinstance(one, str) for one in listed):
        raise ValueError("field layer_types is missing; it must be a list of names")
    if count is not None and len(listed) != count:
        raise ValueError(f"field layer_types has {len(listed)} layers, num_hidden_layers={count}")
    return tuple(listed)


def _state_shape(text: Mapping[str, Any], how: str) -> StateShape:
    if how == _CONVOLUTION:
        size = _number(text, "hidden_size")
        return StateShape(size, 1, 1, size, 0, _number(text, "conv_L_cache"))
    dtype = str(text.get("mamba_ssm_dtype") or "float32")
    if dtype not in _STATE_BYTES:
        raise ValueError(f"field mamba_ssm_dtype={dtype!r} must be one of {list(_STATE_BYTES)}")
    if how == _DELTA:
        heads, size = (
            _number(text, "linear_num_value_heads"),
            _number(text, "linear_value_head_dim"),
        )
        return StateShape(
            heads * size,
            _number(text, "linear_num_key_heads"),
            heads,
            size,
            _number(text, "linear_key_head_dim"),
            _number(text, "linear_conv_kernel_dim"),
            _STATE_BYTES[dtype],
        )
    heads = _number(text, "mamba_num_heads", "mamba_n_heads")
    if text.get("model_type") == "nemotron_h":
        channels = heads * _number(text, "mamba_head_dim")
    elif text.get("mamba_d_ssm") is not None:
        channels = _number(text, "mamba_d_ssm")
    else:
        channels = _number(text, "mamba_expand") * _number(text, "hidden_size")
    if channels % heads:
        raise ValueError(f"{heads} heads do not divide {channels} channels of a recurrent layer")
    return StateShape(
        channels,
        _number(text, "n_groups", "mamba_n_groups"),
        heads,
        channels // heads,
        _number(text, "ssm_state_size", "mamba_d_state"),
        _number(text, "conv_kernel", "mamba_d_conv"),
        _STATE_BYTES[dtype],
    )
