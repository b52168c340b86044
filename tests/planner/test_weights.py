# SPDX-License-Identifier: Apache-2.0
"""Weights of models whose files are not here: the index and headers of a hub of this machine."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fake_hub import fake_hub
from sglang_longflow.planner.api import plan
from sglang_longflow.planner.geometry import PlanError, load_geometry, parameter_count
from sglang_longflow.planner.weights import weights_bytes, weights_of

NAME = "some-lab/Model-1B"
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "torch_dtype": "bfloat16",
}
INDEX = "model.safetensors.index.json"
HEAD_BYTES = 100 * 64 * 2


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with fake_hub() as hub:
        hub.stand_in(monkeypatch, tmp_path / "cache")
        yield hub


def publish(hub, index: bytes | None = None, **changes) -> None:
    hub.put(NAME, "config.json", json.dumps({**CONFIG, **changes}).encode())
    if index is None:
        hub.refuse(NAME, 404, "EntryNotFound", INDEX)
    else:
        hub.put(NAME, INDEX, index)


def index(total: int, *names: str) -> bytes:
    return json.dumps(
        {"metadata": {"total_size": total}, "weight_map": dict.fromkeys(names, "a.safetensors")}
    ).encode()


@pytest.mark.parametrize(
    ("changes", "names", "dtype", "expected"),
    [
        ({}, (), "bfloat16", 10**6),
        ({}, (), "float32", 2 * 10**6),
        ({"torch_dtype": "float32"}, (), "bfloat16", 5 * 10**5),
        ({"torch_dtype": None, "dtype": "float32"}, (), "float16", 5 * 10**5),
        ({"tie_word_embeddings": True}, ("lm_head.weight",), "bfloat16", 10**6 - HEAD_BYTES),
        ({"tie_word_embeddings": False}, ("lm_head.weight",), "bfloat16", 10**6),
        ({"quantization_config": {"quant_method": "fp8"}}, (), "float32", 10**6),
    ],
)
def test_an_index_on_the_hub_tells_the_weights(hub, changes, names, dtype, expected):
    publish(hub, index(10**6, *names), **changes)
    found = weights_of(load_geometry(NAME), dtype, hub=True)
    assert found == (expected, "safetensors index on the hub")


def test_a_model_of_one_file_tells_them_by_its_header(hub):
    header = {
        "__metadata__": {"format": "pt"},
        "model.embed.weight": {"dtype": "F32", "shape": [10], "data_offsets": [0, 40]},
        "model.scale": {"dtype": "I32", "shape": [2], "data_offsets": [40, 48]},
        "lm_head.weight": {"dtype": "F32", "shape": [10], "data_offsets": [48, 88]},
        "filler": {"dtype": "BF16", "shape": [0] * 200_000, "data_offsets": [88, 88]},
    }
    raw = json.dumps(header).encode()
    publish(hub, tie_word_embeddings=True)
    hub.put(NAME, "model.safetensors", len(raw).to_bytes(8, "little") + raw + b"\0" * 88)
    found = weights_of(load_geometry(NAME), "bfloat16", hub=True)
    assert found == (20 + 8, "safetensors header on the hub")
    ranges = [asked for path, _, asked in hub.asked if path.endswith("model.safetensors")]
    assert ranges == ["bytes=0-262143", f"bytes=0-{len(raw) + 7}"]  # never the whole file


@pytest.mark.parametrize("content", [b"<html>", b"[]", b"{}", index(0), index(-5)])
def test_an_index_that_is_none_leaves_the_geometry(hub, content):
    publish(hub, content)
    geometry = load_geometry(NAME)
    expected = (parameter_count(geometry) * 2, "config.json geometry")
    assert weights_of(geometry, hub=True) == expected
    publish(hub, content, quantization_config={"bits": 4})
    with pytest.raises(PlanError, match=r"no config.json.*give --weights-gb"):
        weights_of(load_geometry(NAME), hub=True)


def test_the_cached_index_comes_first_and_whole_files_before_it(hub, tmp_path):
    folder = tmp_path / "cache" / "models--some-lab--Model-1B" / "snapshots" / "main"
    folder.mkdir(parents=True)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text("main")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / INDEX).write_bytes(index(12_345, "a"))
    publish(hub, index(10**6))
    found = weights_of(load_geometry(NAME), hub=True)
    assert found == (12_345, "safetensors index in the cache") and hub.asked == []
    raw = json.dumps({"a": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}).encode()
    (folder / "a.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + b"\0" * 6)
    assert weights_of(load_geometry(NAME), hub=True) == (6, "safetensors files")


def test_only_a_model_of_the_hub_is_asked_for_and_only_on_request(hub):
    publish(hub, index(10**6))
    geometry = load_geometry(NAME)
    hub.asked.clear()
    assert weights_bytes(geometry) == parameter_count(geometry) * 2
    weights_of(replace(geometry, source="built-in"), hub=True)
    assert hub.asked == []


def test_a_plan_of_a_quantized_model_of_the_hub(hub):
    publish(hub, index(3 * 2**30), head_dim=64, quantization_config={"quant_method": "awq"})
    found = plan(NAME, gpu="h100", budget=100, output_tokens=5000)
    assert found.weights_bytes == 3 * 2**30 and found.model_source == "hub"
    assert found.weights_source == "safetensors index on the hub"
