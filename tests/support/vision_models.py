# SPDX-License-Identifier: Apache-2.0
"""Tiny random models that take images, with a tokenizer and an image processor of their own."""

from __future__ import annotations

import base64
import io
import math
import random
from pathlib import Path
from typing import Any

from hybrid_models import hybrid_config
from programs import load_program

#: How the names of Transformers' classes begin, by kind.
_CLASSES = {
    "qwen3_vl": "Qwen3VL",
    "qwen3_vl_moe": "Qwen3VLMoe",
    "qwen2_5_vl": "Qwen2_5_VL",
    "qwen3_5": "Qwen3_5",
    "qwen3_5_moe": "Qwen3_5Moe",
}
KINDS = tuple(_CLASSES)
ARCHITECTURES = {kind: f"{name}ForConditionalGeneration" for kind, name in _CLASSES.items()}
#: Those of which `real_config` knows a published size.
REAL_KINDS = ("qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl", "qwen3_5_moe")
#: A vocabulary of words of two letters and their parts, then of what stands around an image.
LETTERS = "abcdefghijklmnopqrst"
WORDS = 1 + 2 * len(LETTERS) + len(LETTERS) ** 2
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_TEXT = dict(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=4096,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
#: Channels of RoPE that tell time, height and width; together half of a head of 64.
_SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [12, 10, 10]}


def _id(token: str) -> int:
    return WORDS + SPECIAL.index(token)


def vision_config(kind: str) -> Any:
    """The Transformers config of one of `KINDS`."""
    if kind.startswith("qwen3_5"):  # a language model with recurrent layers
        left_out = ("architectures", "transformers_version", "dtype")
        fields = hybrid_config(kind).to_dict().items()
        text = {name: value for name, value in fields if name not in left_out}
        text["rope_parameters"] |= {"mrope_section": [11, 11, 10], "mrope_interleaved": True}
        vision = dict(
            depth=3, hidden_size=64, intermediate_size=64, num_heads=2, patch_size=16,
            num_position_embeddings=64, deepstack_visual_indexes=[], out_hidden_size=64,
        )  # fmt: skip
        return _config(kind, text, vision)
    if kind.startswith("qwen3_vl"):
        # Three layers of the encoder feed layers of the model: SGLang's mixture takes no other.
        vision = dict(
            depth=3, hidden_size=64, intermediate_size=64, num_heads=2, patch_size=16,
            num_position_embeddings=64, deepstack_visual_indexes=[0, 1, 2], out_hidden_size=256,
        )  # fmt: skip
        text = dict(_TEXT, head_dim=64, rope_parameters={**_SECTIONS, "mrope_interleaved": True})
        if kind == "qwen3_vl_moe":
            text |= dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
        return _config(kind, text, vision)
    vision = dict(
        depth=3, hidden_size=64, intermediate_size=64, num_heads=2, patch_size=14,
        out_hidden_size=256, window_size=112, fullatt_block_indexes=[1],
    )  # fmt: skip
    return _config(kind, dict(_TEXT, rope_parameters=_SECTIONS), vision)


def real_config(kind: str) -> Any:
    """That of a published model, but for the ids of its tokens.

    Qwen3-VL-8B, Qwen3-VL-30B-A3B, Qwen2.5-VL-7B or Qwen3.6-35B-A3B.
    """
    rope = {"rope_type": "default", "rope_theta": 5000000.0, "mrope_section": [24, 20, 20]}
    text = dict(
        vocab_size=151936, max_position_embeddings=262144, bos_token_id=None, eos_token_id=None
    )
    if kind == "qwen2_5_vl":
        rope = {**rope, "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]}
        text |= dict(
            hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
            num_attention_heads=28, num_key_value_heads=4, max_position_embeddings=128000,
            rope_parameters=rope, vocab_size=152064,
        )  # fmt: skip
        vision = dict(
            depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, patch_size=14,
            out_hidden_size=3584, window_size=112, fullatt_block_indexes=[7, 15, 23, 31],
        )  # fmt: skip
        return _config(kind, text, vision)
    if kind == "qwen3_5_moe":
        shape = load_program("scripts/bench_geometries.py").GEOMETRIES["qwen3.6-35b-a3b"]
        text |= {name: shape[name] for name in shape if name not in ("model_type", "architectures")}
        text["rope_parameters"] = shape["rope_parameters"] | {
            "mrope_section": [11, 11, 10], "mrope_interleaved": True
        }  # fmt: skip
        vision = dict(
            depth=27, hidden_size=1152, intermediate_size=4304, num_heads=16, patch_size=16,
            out_hidden_size=2048, num_position_embeddings=2304, deepstack_visual_indexes=[],
        )  # fmt: skip
        return _config(kind, text, vision)
    text |= dict(head_dim=128, rope_parameters={**rope, "mrope_interleaved": True})
    text |= dict(num_attention_heads=32)
    if kind == "qwen3_vl_moe":
        text |= dict(
            hidden_size=2048, intermediate_size=6144, num_hidden_layers=48, num_key_value_heads=4,
            num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
        )  # fmt: skip
    else:
        text |= dict(
            hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_key_value_heads=8
        )
    vision = dict(
        depth=27, hidden_size=1152, intermediate_size=4304, num_heads=16, patch_size=16,
        out_hidden_size=text["hidden_size"], num_position_embeddings=2304,
        deepstack_visual_indexes=[8, 16, 24],
    )  # fmt: skip
    return _config(kind, text, vision)


def _config(kind: str, text: dict[str, Any], vision: dict[str, Any]) -> Any:
    import transformers

    return getattr(transformers, f"{_CLASSES[kind]}Config")(
        text_config=text,
        vision_config=vision,
        image_token_id=_id("<|image_pad|>"),
        video_token_id=_id("<|video_pad|>"),
        vision_start_token_id=_id("<|vision_start|>"),
        vision_end_token_id=_id("<|vision_end|>"),
        tie_word_embeddings=False,
    )


def _tokenizer() -> Any:
    """Byte-level BPE as Qwen's, of which two letters behind a space are one token."""
    from transformers import Qwen2Tokenizer

    tokens = ["Ġ", *LETTERS, *(f"Ġ{one}" for one in LETTERS)]
    tokens += [f"Ġ{one}{other}" for one in LETTERS for other in LETTERS]
    merges = [("Ġ", one) for one in LETTERS]
    merges += [(f"Ġ{one}", other) for one in LETTERS for other in LETTERS]
    return Qwen2Tokenizer(
        vocab={token: place for place, token in enumerate(tokens)},
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL),
    )


def _processor(kind: str) -> Any:
    import transformers

    name, video = {
        "qwen3_vl": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
        "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
        "qwen3_5": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    }[kind.removesuffix("_moe")]
    patch = vision_config(kind).vision_config.patch_size
    sizes = dict(patch_size=patch, temporal_patch_size=2, merge_size=2)
    limits = {"shortest_edge": 4 * (2 * patch) ** 2, "longest_edge": 1024 * (2 * patch) ** 2}
    return getattr(transformers, name)(
        image_processor=transformers.Qwen2VLImageProcessor(**sizes, size=limits),
        tokenizer=_tokenizer(),
        video_processor=getattr(transformers, video)(**sizes),
        chat_template="{% for m in messages %}{% for c in m['content'] %}"
        "{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}" + IMAGE + "{% endif %}"
        "{% endfor %}{% endfor %}",
    )


def _turn_experts(file: Path) -> None:
    """As published, where what comes in is first; Transformers reads both, and writes the other."""
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    for name, weight in weights.items():
        if ".experts." in name:
            weights[name] = weight.transpose(1, 2).contiguous()
    save_file(weights, file, {"format": "pt"})


def build_vision_model(kind: str, folder: Path, seed: int = 0) -> Path:
    """Random weights in float32, tokenizer and processor, where SGLang and others load them."""
    import torch
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(seed)
    config = vision_config(kind)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "conv1d" in name and parameter.dim() == 3:
                parameter.normal_(0, 0.5)
            elif "embed" in name or "lm_head" in name:
                parameter.normal_(0, 0.25)
            elif parameter.dim() > 1:  # of an expert the last one goes in; of patches, all but one
                fan_in = parameter.shape[-1] if parameter.dim() < 4 else parameter[0].numel()
                parameter.normal_(0, 1.3 / math.sqrt(fan_in))
            elif name.endswith("dt_bias"):
                parameter.uniform_(math.log(0.01), math.log(0.5)).exp_().expm1_().log_()
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
        model.lm_head.weight[WORDS:] = 0.0  # no answer is an image
    model.save_pretrained(folder)
    if kind == "qwen3_vl_moe":
        _turn_experts(Path(folder) / "model.safetensors")
    _processor(kind).save_pretrained(folder)
    return folder


def build_real_shape(kind: str, folder: Path) -> Path:
    """A folder for ``--load-format dummy``: `real_config`, tokenizer and processor, no weights."""
    config = real_config(kind)
    config.architectures, config.dtype = [ARCHITECTURES[kind]], "bfloat16"
    config.save_pretrained(folder)
    _processor(kind).save_pretrained(folder)
    return folder


def png(width: int, height: int, seed: int) -> bytes:
    """A picture of coloured rectangles, as a file."""
    from PIL import Image, ImageDraw

    draw = random.Random(seed)
    picture = Image.new("RGB", (width, height))
    canvas = ImageDraw.Draw(picture)
    for _ in range(30):
        left, top = draw.randrange(width), draw.randrange(height)
        right, bottom = left + draw.randrange(8, width), top + draw.randrange(8, height)
        colour = tuple(draw.randrange(256) for _ in range(3))
        canvas.rectangle((left, top, right, bottom), fill=colour)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def data_url(file: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def words(count: int, seed: int) -> str:
    """A text of so many words, a token each."""
    draw = random.Random(seed)
    return " ".join("".join(draw.choices(LETTERS, k=2)) for _ in range(count))
