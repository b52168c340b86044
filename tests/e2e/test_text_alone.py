# SPDX-License-Identifier: Apache-2.0
"""Qwen3.5 as it is published, with an encoder of images: text alone is served with a budget."""

from __future__ import annotations

import json

import pytest

import harness
from harness import greedy, prompt
from hybrid_models import FLOAT32_STATES
from sglang_longflow.errors import UnsupportedSetup
from token_oracle import expected, load

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]
VISION = dict(
    depth=2, hidden_size=64, intermediate_size=64, num_heads=2, patch_size=16,
    num_position_embeddings=64, deepstack_visual_indexes=[],
)  # fmt: skip
TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def with_an_encoder(text_model, folder):
    """A tiny Qwen3.5's weights in the architecture of the published ones."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    text = load(text_model)
    fields = json.loads((text_model / "config.json").read_text())
    fields["rope_parameters"] |= {"mrope_section": [11, 11, 10], "mrope_interleaved": True}
    for name in ("architectures", "transformers_version"):
        del fields[name]
    model = Qwen3_5ForConditionalGeneration(
        Qwen3_5Config(
            text_config=fields,
            vision_config={**VISION, "out_hidden_size": fields["hidden_size"]},
            **{name: 500 + i for i, name in enumerate(TOKENS)},
        )
    ).float()
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def published(tiny_models, tmp_path_factory):
    return with_an_encoder(tiny_models("qwen3_5"), tmp_path_factory.mktemp("published"))


def test_with_its_encoder_it_does_not_start(published):
    with pytest.raises(UnsupportedSetup, match="for text alone add --json-model-override-args"):
        with harness.engine(published, kv_budget=64):
            pass


@pytest.mark.parametrize(
    "settings",
    [
        {"json_model_override_args": '{"language_model_only": true}'},  # no encoder is built
        {"enable_multimodal": False},  # it is, and the positions are those of images
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_text_alone_equals_the_text_model(tiny_models, published, settings):
    model = load(tiny_models("qwen3_5"))
    cases = [(prompt(length, length, 490), budget) for length in (40, 100) for budget in (48, 64)]
    with harness.engine(
        published,
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
