# SPDX-License-Identifier: Apache-2.0
"""The tables of tested and refused models: true, and the same as what the tests build."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import expert_models
import harness
import hybrid_models
import vision_models
from sglang_longflow.settings.models import (
    REFUSED,
    TRIED,
    TRIED_TYPES,
    Weights,
    attention_kind,
    untried,
)
from sglang_longflow.settings.refused_models import model_conflict

ROOT = Path(__file__).resolve().parents[2]
DENSE = ("llama", "qwen2", "qwen3", "mistral", "qwen3_moe")


def test_every_evidence_is_a_file_of_the_repository():
    paths = {path for model in TRIED for path in model.evidence.values()}
    assert len(paths) >= 5
    assert {path for path in paths if not (ROOT / path).is_file()} == set()


@pytest.mark.parametrize("kind", DENSE)
def test_the_tiny_models_of_the_tests_are_listed_with_their_shape(kind):
    config = harness.tiny_config(kind)
    listed = {
        (m.query_heads, m.kv_heads, m.head_size)
        for m in TRIED
        if m.name.startswith("tiny")
        and m.architecture.lower() == f"{kind.replace('_', '')}forcausallm"
    }
    shape = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
    assert listed == {shape}


@pytest.mark.parametrize("kind", hybrid_models.KINDS)
def test_the_tiny_hybrids_of_the_tests_are_listed_with_their_shape(kind):
    config = hybrid_models.hybrid_config(kind)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    name = f"{kind.replace('_', '')}forcausallm"
    (model,) = [m for m in TRIED if m.architecture.lower().replace("_", "") == name]
    assert (model.query_heads, model.kv_heads, model.head_size) == (heads, kv_heads, size)
    assert list(model.evidence.values()) == ["tests/e2e/test_hybrid_tokens.py"]


@pytest.mark.parametrize("kind", expert_models.KINDS)
def test_the_tiny_mixtures_of_experts_are_listed_with_their_shape(kind):
    config = expert_models.expert_config(kind)
    shape = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
    listed = [
        m
        for m in TRIED
        if m.architecture.lower() == f"{kind.removesuffix('_normed').replace('_', '')}forcausallm"
        and (m.query_heads, m.kv_heads, m.head_size) == shape
    ]
    assert [list(m.evidence.values()) for m in listed] == [["tests/e2e/test_expert_tokens.py"]]


@pytest.mark.parametrize("kind", vision_models.KINDS)
def test_the_tiny_models_of_images_are_listed_with_their_shape(kind):
    config = vision_models.vision_config(kind).get_text_config()
    (model,) = [m for m in TRIED if m.architecture == vision_models.ARCHITECTURES[kind]]
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    assert (model.query_heads, model.kv_heads, model.head_size) == (heads, kv_heads, size)
    assert list(model.evidence.values()) == ["tests/e2e/test_image_tokens.py"]


def test_the_reasoner_is_listed_with_its_shape():
    file = ROOT / "sglang_longflow/reasoner/model/config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    (model,) = [m for m in TRIED if "reasoner" in m.name]
    assert model.weights is Weights.TRAINED
    assert [model.architecture] == config["architectures"]
    shape = (model.query_heads, model.kv_heads, model.head_size)
    assert shape == tuple(
        config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )


@pytest.mark.parametrize(("names", "config"), REFUSED, ids=[names for names, _ in REFUSED])
def test_what_is_listed_as_refused_is_refused(names, config):
    assert model_conflict(config), names


def test_the_same_fields_without_a_reason_are_not_refused():
    assert model_conflict({"model_type": "llama"}) is None


def test_what_the_tests_build_counts_as_tried():
    kinds = {
        *(harness.tiny_config(kind).model_type for kind in DENSE),
        *(hybrid_models.hybrid_config(kind).model_type for kind in hybrid_models.KINDS),
        *(expert_models.expert_config(kind).model_type for kind in expert_models.KINDS),
        *(vision_models.vision_config(kind).model_type for kind in vision_models.KINDS),
    }
    assert kinds == TRIED_TYPES
    assert [kind for kind in kinds if untried({"model_type": kind})] == []


def test_a_word_on_what_was_not_tried():
    assert untried({"model_type": "phi3"}).startswith(
        "model_type='phi3': its attention is ordinary"
    )
    # The language model of a tried kind may stand in something else, and the other way round.
    assert untried({"model_type": "another", "text_config": {"model_type": "llama"}}) is None
    assert untried({"model_type": "qwen3_vl", "text_config": {"model_type": "another"}}) is None


def test_attention_kinds():
    assert [attention_kind(8, kv) for kv in (8, 2, 1)] == ["MHA", "GQA", "MQA"]
