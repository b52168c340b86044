# SPDX-License-Identifier: Apache-2.0
"""Which servers a bench starts, and with what."""

from __future__ import annotations

import json
import sys

import pytest

from sglang_longflow.errors import BenchError, ConfigError
from sglang_longflow.measure.throughput import systems
from sglang_longflow.measure.variants import parse_variant
from sglang_longflow.server.options import make_parser

INFO = {
    "max_total_num_tokens": 5000,
    "page_size": 1,
    "attention_backend": "flashinfer",
    "chunked_prefill_size": 8192,
    "cuda_graph_max_bs_decode": 512,
    "disable_prefill_cuda_graph": True,
    "disable_decode_cuda_graph": False,
    "device": "cuda",
}


def parsed(system: systems.System) -> dict:
    return vars(make_parser().parse_args(["--model-path", *system.arguments]))


@pytest.mark.sglang
def test_the_budget_server():
    variant = parse_variant("streaming:sinks=4,recent=8")
    system = systems.budget_system("m", 1, variant, [800, 200, 0], 8, ["--dtype=float32"])
    found = parsed(system)
    assert found["kv_budget"] == 200 and found["kv_budget_allow_full"] is True
    assert found["kv_policy"] == "streaming"
    assert (found["kv_protect_sink_tokens"], found["kv_protect_recent_tokens"]) == (4, 8)
    assert found["dtype"] == "float32" and found["stream_interval"] == 8
    only_full = systems.budget_system("m", 1, variant, [0], 8, [])
    assert parsed(only_full)["kv_budget"] == 0


@pytest.mark.sglang
def test_stock_with_its_own_defaults():
    more = ["--kv-decode-kernel", "reference", "--dtype=float32"]
    system = systems.stock_system("stock", "m", 1, 8, more, INFO)
    found = parsed(system)
    assert found["dtype"] == "float32"
    assert not [name for name in found if name.startswith("kv_")]
    assert not {"page_size", "max_total_tokens", "attention_backend"} & set(found)
    assert system.environment == {"SGLANG_PLUGINS": "none"} and system.budgets == [0]


@pytest.mark.sglang
def test_stock_under_the_same_constraints():
    system = systems.stock_system("stock-same", "m", 1, 8, [], {**INFO, "device": "cpu"})
    found = parsed(system)
    assert int(found["max_total_tokens"]) == 5000 and found["page_size"] == 1
    assert found["attention_backend"] == "flashinfer"
    assert found["cuda_graph_max_bs_decode"] == 512
    assert found["disable_prefill_cuda_graph"] is True
    assert "disable_decode_cuda_graph" not in found
    assert system.environment == {"SGLANG_PLUGINS": "longflow_cpu"}


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--kv-victims", "layer", "--tp", "2"], ["--tp", "2"]),
        (["--kv-victims=layer", "--tp", "2"], ["--tp", "2"]),
        (["--kv-budget-allow-full", "--tp", "2"], ["--tp", "2"]),
        (["--tp", "2", "--kv-decode-kernel"], ["--tp", "2"]),
        (["--kv-cache-dtype", "fp8_e5m2"], ["--kv-cache-dtype", "fp8_e5m2"]),  # SGLang's own
        ([], []),
    ],
)
def test_the_plugins_flags_are_not_stock_sglangs(words, kept):
    assert systems.without_kv(words) == kept


@pytest.mark.parametrize("word", ["--kv-budget", "--kv-budget=7", "--kv_policy=tova"])
def test_what_the_bench_sets_is_refused(word):
    with pytest.raises(ConfigError, match="--budgets"):
        systems.refuse_own_flags(["--dtype", "float32", word])
    systems.refuse_own_flags(["--kv-budget-max=9", "--kv-decode-kernel", "reference"])


def test_a_server_that_is_not_there():
    with pytest.raises(BenchError, match=r"127\.0\.0\.1:9/server_info"):
        systems.get_json("http://127.0.0.1:9/server_info")


def test_a_model_without_a_configuration(tmp_path):
    with pytest.raises(ConfigError, match="--vocab-size"):
        systems.vocabulary_of(str(tmp_path))


def test_the_vocabulary_is_read_without_transformers(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for config in ({"vocab_size": 300}, {"text_config": {"vocab_size": 300}, "vocab_size": 9}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert systems.vocabulary_of(str(tmp_path)) == 300
