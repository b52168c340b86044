# SPDX-License-Identifier: Apache-2.0
"""Files that anyone may have written: an error at once, never a wait, a crash or all the memory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sglang_longflow.errors import ConfigError
from sglang_longflow.planner.api import plan
from sglang_longflow.planner.geometry import PlanError
from sglang_longflow.server.preflight import check_port, find_model
from sglang_longflow.server.yaml_file import yaml_arguments
from sglang_longflow.settings import preflight
from sglang_longflow.settings.cache import cache_folder
from sglang_longflow.settings.files import read_json, user_path

LLAMA = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 100,
    "max_position_embeddings": 8192,
}  # fmt: skip
OTHERS = (
    *("rope_scaling", "quantization_config", "text_config", "layer_types", "sliding_window"),
    *("num_experts", "moe_intermediate_size", "torch_dtype", "v_head_dim", "mlp_only_layers"),
)
ODD = (
    *("Infinity", "-Infinity", "NaN", "-1", "0", "1" + "0" * 400, "1e308", "1.5"),
    *('"x"', "[1]", '{"a": 1}', '{"factor": Infinity}', '{"factor": NaN}', "null", "true"),
)


def _fifo(file: Path) -> None:
    os.mkfifo(file)


def _sparse(file: Path) -> None:
    with file.open("wb") as out:
        out.truncate(1 << 40)  # takes no room, and no memory holds it


FILES = {
    "pipe": (_fifo, OSError),
    "folder": (Path.mkdir, OSError),
    "loop": (lambda file: file.symlink_to(file.name), OSError),
    "endless": (lambda file: file.symlink_to("/dev/zero"), OSError),
    "sparse": (_sparse, ValueError),
    "list in list": (lambda file: file.write_text("[" * 100_000), ValueError),
    "object in object": (lambda file: file.write_text('{"a":' * 100_000), ValueError),
    "bytes": (lambda file: file.write_bytes(b"\xff\xfe"), ValueError),
}


@pytest.mark.parametrize("kind", FILES)
def test_no_file_is_waited_for_or_read_without_end(tmp_path, kind):
    make, error = FILES[kind]
    make(tmp_path / "config.json")
    with pytest.raises(error):
        read_json(tmp_path / "config.json")
    with pytest.raises(PlanError, match=r"config\.json"):
        plan(tmp_path, gpu="L4", budget=1024)


@pytest.mark.parametrize("field", (*LLAMA, *OTHERS))
def test_a_config_may_say_anything(tmp_path, field):
    """A plan, or one line; nothing overflows, and nothing is counted up to 10 to the 400."""
    arguments = {"model_path": str(tmp_path), "kv_budget": 1024, "load_format": "dummy"}
    for odd in ODD:
        text = json.dumps({**LLAMA, field: "@"}).replace('"@"', odd)
        (tmp_path / "config.json").write_text(text)
        try:
            plan(tmp_path, gpu="L4", budget=1024)
        except PlanError as error:
            assert len(str(error)) < 500, odd
        look = find_model(arguments, hub=False)
        assert all(map(str, preflight.judge(arguments, look.config)))


@pytest.mark.sglang
@pytest.mark.parametrize(
    "text",
    [
        "kv-budget: 2026-13-45",
        "kv-budget: " + "9" * 5000,
        "kv-budget: !!int abc",
        "kv-budget: !!timestamp x",
        "kv-budget: !!float x",
        "kv-budget: !!python/object/apply:os.system [id]",
        "a: " + "[" * 5000,
        "{" * 5000,
        "cuda-graph-config: &a [*a]",
        "lora-paths: &a {x: *a}",
        "cuda-graph-config: {a: 2026-01-01}",
        "lora-paths: !!set {a, b}",
        'served-model-name: "a\\0b"',
        'served-model-name: "\\ud800"',
        # Nine to the power of 19 words: a few lines that have no end once they are written out.
        "lora-paths:\n  - &b0 [x]\n"
        + "".join(f"  - &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, 20)),
        "kv-budget:\n  - &b0 [x]\n"
        + "".join(f"  - &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, 20)),
    ],
)
def test_yaml_may_say_anything(tmp_path, text):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as found:
        yaml_arguments(file)
    assert len(str(found.value)) < len(str(file)) + 1500


def test_a_pipe_is_no_config(tmp_path):
    """It is read more than once, and would be empty the second time: a server without a budget."""
    _fifo(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="not an ordinary file"):
        yaml_arguments(tmp_path / "config.yaml")


@pytest.mark.parametrize("host", ["a" * 70, "a..b", "a\0b"])
def test_a_host_that_is_no_name(host):
    with pytest.raises(ConfigError, match="host="):
        check_port(host, 31000)


def test_a_user_without_a_home(monkeypatch):
    assert user_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    monkeypatch.delenv("LONGFLOW_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", _no_home)
    with pytest.raises(ConfigError, match="LONGFLOW_CACHE"):
        cache_folder()


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "model.safetensors"])
def test_weights_may_say_anything(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    deep = b"[" * 100_000
    header = len(deep).to_bytes(8, "little") if name.endswith("safetensors") else b""
    (tmp_path / name).write_bytes(header + deep)
    with pytest.raises(PlanError, match="not readable"):
        plan(tmp_path, gpu="L4", budget=1024)
    with (tmp_path / "model.safetensors").open("wb") as out:  # a header of a terabyte
        out.write((1 << 40).to_bytes(8, "little"))
        out.truncate(1 << 41)
    (tmp_path / "model.safetensors.index.json").unlink(missing_ok=True)
    with pytest.raises(PlanError, match="header"):
        plan(tmp_path, gpu="L4", budget=1024)
