# SPDX-License-Identifier: Apache-2.0
"""Qwen3.5 as it is published, with an encoder of images, by a server that takes text alone."""

from __future__ import annotations

import json

import pytest

import harness
from harness import greedy, prompt
from hybrid_models import FLOAT32_STATES
from token_oracle import expected, load

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]
VISION = dict(
    depth=2, hidden_size=64, intermediate_size=64, num_heads=2, patch_size=16,
    num_position_embeddings=64, deepstack_visual_indexes=[],
)  # fmt: skip
TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def with_an_encoder(text_model, folder):
    """A tiny Qwen3.5's weights in the architecture of the published ones."""
    import transformers

    text = load(text_model)
    fields = json.loads((text_model / "config.json").read_text())
    fields["rope_parameters"] |= {"mrope_section": [11, 11, 10], "mrope_interleaved": True}
    for name in ("architectures", "transformers_version"):
        del fields[name]
    name = "Qwen3_5Moe" if "moe" in fields["model_type"] else "Qwen3_5"
    config = getattr(transformers, f"{name}Config")
    model = getattr(transformers, f"{name}ForConditionalGeneration")(
        config(
            text_config=fields,
            vision_config={**VISION, "out_hidden_size": fields["hidden_size"]},
            **{token: 500 + i for i, token in enumerate(TOKENS)},
        )
    ).float()
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def published(tiny_models, tmp_path_factory):
    folders = {
        kind: with_an_encoder(tiny_models(kind), tmp_path_factory.mktemp("published"))
        for kind in ("qwen3_5", "qwen3_5_moe")
    }
    return folders.__getitem__


#: SGLang builds no encoder.
NO_ENCODER = {"json_model_override_args": '{"language_model_only": true}'}
#: It builds one, and takes the positions of images.
NO_IMAGES = {"enable_multimodal": False}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("qwen3_5", NO_ENCODER),
        pytest.param("qwen3_5", NO_IMAGES, marks=pytest.mark.variant),
        pytest.param("qwen3_5_moe", NO_ENCODER, marks=pytest.mark.variant),
    ],
)
def test_text_alone_equals_the_text_model(tiny_models, published, kind, settings):
    model = load(tiny_models(kind))
    cases = [(prompt(length, length, 490), budget) for length in (40, 100) for budget in (48, 64)]
    with harness.engine(
        published(kind),
        probe=True,
        env=FLOAT32_STATES,
        kv_budget=64,
        max_mamba_cache_size=40,
        **settings,
    ) as engine:
        with pytest.raises(ValueError, match="image_data: this server takes text alone"):
            engine.generate(input_ids=prompt(40, 1, 490), image_data="data:,")
        got = engine.generate(
            input_ids=[ids for ids, _ in cases],
            sampling_params=[greedy(80, kv_budget=budget) for _, budget in cases],
        )
        assert engine.probe_report()["peak_full_rows"] == len(cases)
    assert harness.outputs(got) == [expected(model, ids, budget, 80) for ids, budget in cases]
